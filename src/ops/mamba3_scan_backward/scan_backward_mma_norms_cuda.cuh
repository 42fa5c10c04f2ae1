// Behind the walk back: sums over heads of what it left of B's and C's rows in bf16, through their
// norms.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_gradients_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_sums_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_norms_cuda.cuh"

namespace mamba3 {
namespace {

struct MmaNormsJob {
  NormedRows rows[2];  // of B, of C
  BackwardPieces pieces;
  float* norm_sums;  // [pieces, 2, n]
};

// A lane's eight numbers of a row.
struct RowEight {
  float v[8] = {};

  __device__ __forceinline__ void add(const __nv_bfloat16* from) {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
    const std::uint32_t words[] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float a, b;
      unpack_bf16(words[i], a, b);
      v[2 * i] += a;
      v[2 * i + 1] += b;
    }
  }
  __device__ __forceinline__ void add(const RowEight& more) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] += more.v[i];
  }
  __device__ __forceinline__ void round() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      unpack_bf16(pack_bf16(v[2 * i], v[2 * i + 1]), v[2 * i], v[2 * i + 1]);
    }
  }
};

// The sum over a group's heads, `elements` apart: see scan_backward_mma_chains_cuda.cuh.
template <int kChain>
__device__ __forceinline__ RowEight add_heads(const __nv_bfloat16* from, int heads,
                                              std::int64_t elements, bool chained) {
  RowEight sums;
  if (chained) {
#pragma unroll 8
    for (int head = 0; head < heads; head += kChain) sums.add(from + head * elements);
  } else {
#pragma unroll 2
    for (int head = 0; head < heads; head += kChain) {
      RowEight chain;
#pragma unroll
      for (int i = 0; i < kChain; ++i) {
        chain.add(from + (head + i) * elements);
        chain.round();
      }
      sums.add(chain);
    }
  }
  return sums;
}

// A block takes a piece's rows of B or of C, and a warp some of them at once: their sums lie in
// shared memory before each goes through its norm.
template <int kState, int kChain>
__global__ void __launch_bounds__(kTotalThreads)
    finish_head_rows_kernel(const __grid_constant__ BackwardMmaJob job,
                            const __grid_constant__ MmaNormsJob norms) {
  constexpr int kLanes = kState / 8;  // of a row
  constexpr int kRows = kWarpLanes / kLanes;
  constexpr int kPad = 8;  // rows' numbers lie in different banks
  __shared__ float shared[kTotalWarps][kRows][kState + kPad];
  __shared__ float warp_sums[kTotalWarps][kState];
  const TokenSizes& sizes = job.scan.sizes;
  const BackwardPiece piece = norms.pieces.pieces[blockIdx.x];
  const __nv_bfloat16* partials = blockIdx.y == 0 ? job.grad_b : job.grad_c;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int heads = sizes.heads / sizes.groups;
  const std::int64_t elements = job.scan.tokens * sizes.rank * kState;  // of a head
  const int rows_per_token = sizes.rank * sizes.groups;
  const int count = (piece.end - piece.begin) * rows_per_token;
  const bool chained = count > 0 && job.chained[piece.begin] != 0;
  NormSums<kState> sums{};
  for (int first = warp * kRows; first < count; first += kTotalWarps * kRows) {
    const int own = first + lane / kLanes;
    if (own < count) {
      const int column = lane % kLanes * 8;
      const int r = own % rows_per_token / sizes.groups, group = own % sizes.groups;
      const std::int64_t row = std::int64_t{piece.begin + own / rows_per_token} * sizes.rank + r;
      const RowEight sum = add_heads<kChain>(
          partials + group * heads * elements + row * kState + column, heads, elements, chained);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        shared[warp][lane / kLanes][place_of(sizes, gradient_column(kState, column + i))] =
            sum.v[i];
      }
    }
    __syncwarp();
    for (int i = 0; i < kRows && first + i < count; ++i) {
      norm_row_backward(norms.rows[blockIdx.y], shared[warp][i], kState, lane,
                        piece.begin + (first + i) / rows_per_token,
                        (first + i) % rows_per_token * kState, sums);
    }
    __syncwarp();
  }
  tell_norm_sums(sums, kState, warp_sums,
                 norms.norm_sums + (std::int64_t{blockIdx.x} * 2 + blockIdx.y) * kState);
}

template <int kState>
void finish_head_rows(const BackwardMmaJob& job, const MmaNormsJob& norms, cudaStream_t stream) {
  auto kernel = finish_head_rows_kernel<kState, 1>;
  if constexpr (kState == 128) {
    if (job.chain == 4) kernel = finish_head_rows_kernel<kState, 4>;
    if (job.chain == 2) kernel = finish_head_rows_kernel<kState, 2>;
  }
  const dim3 grid(grid_blocks(norms.pieces.count), 2);
  kernel<<<grid, kTotalThreads, 0, stream>>>(job, norms);
  check_launch("mamba3_scan_backward: rows of all heads");
}

}  // namespace
}  // namespace mamba3
