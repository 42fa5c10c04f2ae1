// Before the scan by mma.sync: what all heads share of a token, and each head's numbers of it, go
// into the workspace, laid out as the scan reads them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/arena.h"
#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan/scan_columns_cuda.cuh"

namespace mamba3 {

struct MmaScanJob {
  TokenSizes sizes;
  Mamba3Params params;
  Mamba3Columns columns;
  Mamba3States states;
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
  // the precision of bf16. Pairs that are rotated stand side by side.
  __half* in_b;       // [g, t, r, n]
  __half* out_c;      // [g, t, r, n]
  double* turning;    // [h, t]
  double* log_decay;  // [h, t]
  float2* weights;    // [h, t]  gamma, and (1 - lam) dt
  double* half_tanh;  // [t, s]
  ScanStarts starts;
  float* read_out;  // see ReadOuts; out_norm only
  // A chunk has 2^rank_bits rows for each token: a power of two, so that no product of 16 rows cuts
  // a token in two. Rows behind the rank are zeros.
  int rank_bits;
};

namespace {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareWarps = kPrepareThreads / kWarpLanes;
constexpr int kMostLanePairs = kMostState / 2 / kWarpLanes;

// The two numbers of a pair in a row as it is outside: of B or C, of parameters, of a state's k.
__device__ __forceinline__ float2 canonical_pair(const TokenSizes& sizes, const float* row,
                                                 int pair) {
  return sizes.mimo ? make_float2(row[pair], row[pair + sizes.state / 2])
                    : make_float2(row[2 * pair], row[2 * pair + 1]);
}

// A warp takes a row of B or C.
__global__ void __launch_bounds__(kPrepareThreads) normalise_rows_kernel(const MmaScanJob job) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows_per_token = std::int64_t{sizes.rank} * sizes.groups;
  const std::int64_t rows = job.tokens * rows_per_token;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  std::int64_t row =
      std::int64_t{blockIdx.x} * kPrepareWarps + static_cast<int>(threadIdx.x) / kWarpLanes;
  if (row >= 2 * rows) return;
  const bool is_b = row < rows;
  if (!is_b) row -= rows;
  const std::int64_t token = row / rows_per_token;
  const int in_token = static_cast<int>(row - token * rows_per_token);
  const int r = in_token / sizes.groups;
  const int g = in_token - r * sizes.groups;
  const float* from = (is_b ? job.columns.in_b : job.columns.out_c) +
                      token * job.columns.row_stride + std::int64_t{in_token} * sizes.state;
  const int half = sizes.state / 2;
  float2 held[kMostLanePairs];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kMostLanePairs; ++j) {
    const int pair = j * kWarpLanes + lane;
    held[j] = pair < half ? canonical_pair(sizes, from, pair) : make_float2(0, 0);
    squares += held[j].x * held[j].x + held[j].y * held[j].y;
  }
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
  }
  const float scale =
      1.0f / sqrtf(squares / static_cast<float>(sizes.state) + static_cast<float>(kBcNormEps));
  auto* to = reinterpret_cast<__half2*>((is_b ? job.in_b : job.out_c) +
                                        ((g * job.tokens + token) * sizes.rank + r) * sizes.state);
#pragma unroll
  for (int j = 0; j < kMostLanePairs; ++j) {
    const int pair = j * kWarpLanes + lane;
    if (pair < half) to[pair] = __floats2half2_rn(held[j].x * scale, held[j].y * scale);
  }
}

__device__ void weigh_token(const MmaScanJob& job, std::int64_t token, int head) {
  const std::int64_t from = token * job.columns.row_stride + head;
  const std::int64_t to = head * job.tokens + token;
  const TokenNumbers numbers =
      token_numbers(job.sizes, job.columns.dt_raw[from], job.params.dt_bias[head],
                    job.columns.decay_raw[from], job.columns.trap_raw[from]);
  job.turning[to] = turning(job.sizes, numbers.dt);
  job.log_decay[to] = numbers.log_decay;
  job.weights[to] = make_float2(static_cast<float>(numbers.now), static_cast<float>(numbers.carry));
}

// A block takes 32 tokens of eight heads, which read one piece of memory; the blocks after those
// take the angles.
__global__ void __launch_bounds__(kPrepareThreads)
    token_numbers_kernel(const MmaScanJob job, unsigned head_blocks) {
  const TokenSizes& sizes = job.sizes;
  if (blockIdx.x < head_blocks) {
    const unsigned across = (sizes.heads + kPrepareWarps - 1) / kPrepareWarps;
    const int head =
        static_cast<int>(blockIdx.x % across * kPrepareWarps + threadIdx.x / kWarpLanes);
    const std::int64_t token =
        std::int64_t{blockIdx.x / across} * kWarpLanes + threadIdx.x % kWarpLanes;
    if (head < sizes.heads && token < job.tokens) weigh_token(job, token, head);
    return;
  }
  const std::int64_t i = std::int64_t{blockIdx.x - head_blocks} * kPrepareThreads + threadIdx.x;
  if (i >= job.tokens * sizes.angles) return;
  const std::int64_t token = i / sizes.angles;
  const std::int64_t angle = i - token * sizes.angles;
  job.half_tanh[i] = turn_rate(sizes, job.columns.angle_raw, token * job.columns.row_stride,
                               static_cast<int>(angle));
}

void take_mma_workspace(MmaScanJob& job, ArenaScope& scope) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t shared = job.tokens * sizes.rank * sizes.groups * sizes.state;
  const std::int64_t pairs = job.tokens * sizes.heads;
  job.in_b = scope.allocate<__half>(shared);
  job.out_c = scope.allocate<__half>(shared);
  job.turning = scope.allocate<double>(pairs);
  job.log_decay = scope.allocate<double>(pairs);
  job.weights = scope.allocate<float2>(pairs);
  job.half_tanh = scope.allocate<double>(job.tokens * sizes.angles);
  job.starts = take_starts(sizes, job.sequences, scope);
  job.read_out = take_read_outs(sizes, job.tokens, scope);
}

void prepare_mma_tokens(const MmaScanJob& job, cudaStream_t stream) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows = 2 * job.tokens * sizes.rank * sizes.groups;
  normalise_rows_kernel<<<grid_blocks(rows, kPrepareWarps), kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan: norms");
  const unsigned head_blocks = grid_blocks((job.tokens + kWarpLanes - 1) / kWarpLanes *
                                           ((sizes.heads + kPrepareWarps - 1) / kPrepareWarps));
  const unsigned angle_blocks = grid_blocks(job.tokens * sizes.angles, kPrepareThreads);
  token_numbers_kernel<<<head_blocks + angle_blocks, kPrepareThreads, 0, stream>>>(job,
                                                                                   head_blocks);
  check_launch("mamba3_scan: numbers");
  keep_starts(sizes, job.states, job.slots, job.sequences, job.starts, stream);
}

}  // namespace
}  // namespace mamba3
