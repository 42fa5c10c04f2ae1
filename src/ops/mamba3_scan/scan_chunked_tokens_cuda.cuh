// Before the chunked scan on a GPU: what all heads share of a token, and each head's numbers of it,
// go into the workspace, laid out as the scan reads them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan/mamba3_scan.h"

namespace mamba3 {

// A stretch of a sequence that one block for each of some heads walks. Slots below zero are of the
// workspace: -1 is its first.
struct ScanPiece {
  std::int32_t begin;  // tokens
  std::int32_t end;
  std::int32_t from;      // the slot with the state before it
  std::int32_t to;        // the slot that gets the state behind it
  std::int32_t head = 0;  // the first
  std::int32_t gate = 0;  // number of the gate that lets it begin, or that it opens, then negative
};

struct ChunkedScanJob {
  TokenSizes sizes;
  Mamba3Params params;
  Mamba3Columns columns;
  Mamba3States states;
  Mamba3States parts;              // the workspace's slots, see scan_parts_cuda.cuh
  const std::int64_t* cu_seqlens;  // [q + 1]
  const std::int32_t* slots;       // [q]
  std::int64_t tokens;
  std::int64_t sequences;
  const __nv_bfloat16* z;  // [t, h * p]
  const __nv_bfloat16* x;  // [t, h * p]
  std::int64_t zx_stride;
  void* y;  // [t, h * p] bf16 or fp32
  std::int64_t y_stride;
  bool y_bf16;

  // B and C divided by their root mean square, which makes them small enough for fp16: eight times
  // the precision of bf16. See canonical_place.
  __half* in_b;     // [g, t, r, n]
  __half* out_c;    // [g, t, r, n]
  double* turning;  // [h, t]  what phases move by
  // Of each 32 tokens from the first on, running sums of what they leave of a state, as base-2
  // logarithms in units of kDecayUnit. Sums of integers do not depend on where they begin, so a
  // sequence's bits do not depend on its place among others.
  std::int64_t* decays;  // [h, t]
  float2* weights;       // [h, t]  gamma, and (1 - lam) dt
  double* half_tanh;     // [t, 32 or 64]  turn_rate(), zero where nothing is rotated
  ScanPiece* pieces;     // of one walk
  int piece_heads;       // of each
  unsigned* taken;  // pieces whose blocks have started; null: blocks have those of their numbers
  int* gates;       // [multiprocessors] between blocks, 1 where open; none has number 0
  const void* nothing;  // an address, where zeros are asked for
};

// The place among the canonical n of number `at` of a row here, where the pairs that one lane of a
// warp rotates stand side by side.
__host__ __device__ inline int canonical_place(const TokenSizes& sizes, int at) {
  const int lane_pairs = sizes.state / 2 / kWarpLanes;
  const int pair = at / 2 % lane_pairs * kWarpLanes + at / 2 / lane_pairs;
  return sizes.mimo ? pair + at % 2 * (sizes.state / 2) : 2 * pair + at % 2;
}

namespace {

constexpr int kDecayTokens = kWarpLanes;
constexpr double kDecayUnit = 0x1p-40;
constexpr double kLeastDecay = -65536;  // of a token; exp2 of it is zero, and sums of it fit

constexpr int kPrepareThreads = 256;
constexpr int kPrepareWarps = kPrepareThreads / kWarpLanes;

// A warp takes some rows of B or C, one behind the other in memory where the rows of tokens are.
constexpr int kNormRows = 4;
constexpr int kNormBlockRows = kPrepareWarps * kNormRows;

struct SharedRow {
  const float* from;
  __half* to;
};

// Number `row` of all rows of B, and then of C.
__device__ __forceinline__ SharedRow shared_row(const ChunkedScanJob& job, std::int64_t row) {
  const TokenSizes& sizes = job.sizes;
  const unsigned per_token = sizes.rank * sizes.groups;
  const std::int64_t rows = job.tokens * per_token;
  const bool is_b = row < rows;
  const auto own = static_cast<std::uint32_t>(is_b ? row : row - rows);  // of fewer than 2^32
  const std::int64_t token = own / per_token;
  const auto in_token = static_cast<int>(own % per_token);
  const int r = in_token / sizes.groups;
  const int g = in_token - r * sizes.groups;
  return {
      (is_b ? job.columns.in_b : job.columns.out_c) + token * job.columns.row_stride +
          std::int64_t{in_token} * sizes.state,
      (is_b ? job.in_b : job.out_c) + ((g * job.tokens + token) * sizes.rank + r) * sizes.state};
}

// kLanePairs: of a row, a lane's.
template <int kLanePairs>
__device__ void normalise_rows(const ChunkedScanJob& job, std::int64_t first, std::int64_t rows) {
  constexpr int kHalf = kLanePairs * kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  float2 held[kNormRows][kLanePairs];
#pragma unroll
  for (int i = 0; i < kNormRows; ++i) {
    const float* from = shared_row(job, min(first + i, rows - 1)).from;
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j) {
      const int pair = j * kWarpLanes + lane;
      held[i][j] = job.sizes.mimo ? make_float2(from[pair], from[pair + kHalf])
                                  : make_float2(from[2 * pair], from[2 * pair + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < kNormRows; ++i) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j) {
      squares += held[i][j].x * held[i][j].x + held[i][j].y * held[i][j].y;
    }
    for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
      squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
    }
    const float scale =
        1.0f / sqrtf(squares / static_cast<float>(2 * kHalf) + static_cast<float>(kBcNormEps));
    struct alignas(4 * kLanePairs) Pairs {
      __half2 pairs[kLanePairs];
    } out;
#pragma unroll
    for (int j = 0; j < kLanePairs; ++j) {
      out.pairs[j] = __floats2half2_rn(held[i][j].x * scale, held[i][j].y * scale);
    }
    if (first + i >= rows) return;
    reinterpret_cast<Pairs*>(shared_row(job, first + i).to)[lane] = out;
  }
}

// The numbers of 32 tokens of a head, by a warp.
__device__ void weigh_tokens(const ChunkedScanJob& job, std::int64_t token, int head) {
  constexpr double kLog2e = 1.4426950408889634;
  const bool is = token < job.tokens;
  TokenNumbers numbers{};
  if (is) {
    const std::int64_t from = token * job.columns.row_stride + head;
    numbers = token_numbers(job.sizes, job.columns.dt_raw[from], job.params.dt_bias[head],
                            job.columns.decay_raw[from], job.columns.trap_raw[from]);
  }
  // What is not a number leaves nothing, and its weights say that it was none.
  const double decay = fmax(numbers.log_decay * kLog2e, kLeastDecay);
  const float broken = isnan(numbers.log_decay) ? nanf("") : 0.0f;
  const std::int64_t sum = warp_inclusive_sum(std::int64_t{__double2ll_rn(decay / kDecayUnit)},
                                              static_cast<int>(threadIdx.x) % kWarpLanes);
  if (!is) return;
  const std::int64_t to = head * job.tokens + token;
  job.turning[to] = turning(job.sizes, numbers.dt);
  job.decays[to] = sum;
  job.weights[to] = make_float2(static_cast<float>(numbers.now) + broken,
                                static_cast<float>(numbers.carry) + broken);
}

// Angles in a row of half_tanh: what a chunk's warps read.
__host__ __device__ inline int angle_columns(const TokenSizes& sizes) {
  return sizes.angles <= kWarpLanes ? kWarpLanes : 2 * kWarpLanes;
}

// Blocks of the kernel below, by what they make.
struct PrepareBlocks {
  unsigned norms;
  unsigned heads;
  unsigned angles;
};

// Rows of B and C wait for memory, what the heads need of a token for arithmetic in double: blocks
// for either stand side by side. For heads, a block takes 32 tokens of eight of them, which read
// one piece of memory.
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_tokens_kernel(const ChunkedScanJob job, const PrepareBlocks blocks) {
  constexpr unsigned kKinds = 3;
  const TokenSizes& sizes = job.sizes;
  const unsigned kind = blockIdx.x % kKinds;
  const unsigned block = blockIdx.x / kKinds;
  const unsigned warp = threadIdx.x / kWarpLanes;
  if (kind == 0 && block < blocks.norms) {
    const std::int64_t rows = 2 * job.tokens * sizes.rank * sizes.groups;
    const std::int64_t first =
        std::int64_t{block} * kNormBlockRows + static_cast<int>(warp) * kNormRows;
    if (first >= rows) return;
    sizes.state == 2 * kWarpLanes ? normalise_rows<1>(job, first, rows)
                                  : normalise_rows<2>(job, first, rows);
  } else if (kind == 1 && block < blocks.heads) {
    const unsigned across = (sizes.heads + kPrepareWarps - 1) / kPrepareWarps;
    const auto head = static_cast<int>(block % across * kPrepareWarps + warp);
    const std::int64_t token = std::int64_t{block / across} * kWarpLanes + threadIdx.x % kWarpLanes;
    if (head < sizes.heads) weigh_tokens(job, token, head);
  } else if (kind == 2 && block < blocks.angles) {
    const unsigned columns = angle_columns(sizes);
    const auto angle = static_cast<int>(threadIdx.x % columns);
    const std::int64_t token =
        std::int64_t{block} * (kPrepareThreads / columns) + threadIdx.x / columns;
    if (token >= job.tokens) return;
    const std::int64_t row = token * job.columns.row_stride;
    job.half_tanh[token * columns + angle] =
        angle < sizes.angles ? turn_rate(sizes, job.columns.angle_raw, row, angle) : 0.0;
  }
}

// z and x of an op that has them in fp32.
__global__ void __launch_bounds__(kPrepareThreads)
    round_columns_kernel(const Mamba3Columns columns, std::int64_t tokens, std::int64_t inner,
                         __nv_bfloat16* z, __nv_bfloat16* x) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (i >= tokens * inner) return;
  const std::int64_t from = i / inner * columns.row_stride + i % inner;
  z[i] = __float2bfloat16_rn(columns.z[from]);
  x[i] = __float2bfloat16_rn(columns.x[from]);
}

void round_columns(ChunkedScanJob& job, ArenaScope& scope, cudaStream_t stream) {
  const std::int64_t inner = std::int64_t{job.sizes.heads} * job.sizes.head_dim;
  auto* z = scope.allocate<__nv_bfloat16>(job.tokens * inner);
  auto* x = scope.allocate<__nv_bfloat16>(job.tokens * inner);
  round_columns_kernel<<<grid_blocks(job.tokens * inner, kPrepareThreads), kPrepareThreads, 0,
                         stream>>>(job.columns, job.tokens, inner, z, x);
  check_launch("mamba3_scan: rounding");
  job.z = z;
  job.x = x;
  job.zx_stride = inner;
}

void take_chunked_workspace(ChunkedScanJob& job, ArenaScope& scope) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t shared = job.tokens * sizes.rank * sizes.groups * sizes.state;
  const std::int64_t pairs = job.tokens * sizes.heads;
  job.in_b = scope.allocate<__half>(shared);
  job.out_c = scope.allocate<__half>(shared);
  job.turning = scope.allocate<double>(pairs);
  job.decays = scope.allocate<std::int64_t>(pairs);
  job.weights = scope.allocate<float2>(pairs);
  job.half_tanh = scope.allocate<double>(job.tokens * angle_columns(sizes));
}

void prepare_chunked_tokens(const ChunkedScanJob& job, cudaStream_t stream) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows = 2 * job.tokens * sizes.rank * sizes.groups;
  const PrepareBlocks blocks{grid_blocks(rows, kNormBlockRows),
                             grid_blocks((job.tokens + kWarpLanes - 1) / kWarpLanes *
                                         ((sizes.heads + kPrepareWarps - 1) / kPrepareWarps)),
                             grid_blocks(job.tokens * angle_columns(sizes), kPrepareThreads)};
  const unsigned most = std::max({blocks.norms, blocks.heads, blocks.angles});
  prepare_tokens_kernel<<<grid_blocks(std::int64_t{3} * most), kPrepareThreads, 0, stream>>>(
      job, blocks);
  check_launch("mamba3_scan: tokens");
}

}  // namespace
}  // namespace mamba3
