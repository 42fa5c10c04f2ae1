// Before the scan on a GPU token by token: what all heads or all blocks share of the tokens goes
// into the workspace.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan/scan_columns_cuda.cuh"

namespace mamba3 {

constexpr int kScanThreads = 256;
constexpr int kScanWarps = kScanThreads / kWarpLanes;

// What the kernels of one call are given.
struct ScanJob {
  TokenSizes sizes;
  Mamba3Params params;
  Mamba3Columns columns;
  Mamba3States states;
  const std::int64_t* cu_seqlens;
  const std::int32_t* slots;
  std::int64_t tokens;
  std::int64_t sequences;
  float* y;
  std::int64_t y_stride;

  TokenWeights* weights;  // [t, h]
  double* half_tanh;      // [t, s]
  float* normed_b;        // [t, r, g, n]
  float* normed_c;        // [t, r, g, n]
  ScanStarts starts;
  float* read_out;  // see ReadOuts; out_norm only
};

inline void take_scan_workspace(ScanJob& job, ArenaScope& scope) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t shared = job.tokens * sizes.rank * sizes.groups * sizes.state;
  job.weights = scope.allocate<TokenWeights>(job.tokens * sizes.heads);
  job.half_tanh = scope.allocate<double>(job.tokens * sizes.angles);
  job.normed_b = scope.allocate<float>(shared);
  job.normed_c = scope.allocate<float>(shared);
  job.starts = take_starts(sizes, job.sequences, scope);
  job.read_out = take_read_outs(sizes, job.tokens, scope);
}

namespace {

// A warp takes one row of B or C.
__global__ void __launch_bounds__(kScanThreads) norm_rows_kernel(const ScanJob job) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows_per_token = std::int64_t{sizes.rank} * sizes.groups;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  std::int64_t row =
      std::int64_t{blockIdx.x} * kScanWarps + static_cast<int>(threadIdx.x) / kWarpLanes;
  const std::int64_t rows = job.tokens * rows_per_token;
  if (row >= 2 * rows) return;
  const bool is_b = row < rows;
  if (!is_b) row -= rows;
  const std::int64_t token = row / rows_per_token;
  const std::int64_t from =
      token * job.columns.row_stride + (row - token * rows_per_token) * sizes.state;
  float* out = (is_b ? job.normed_b : job.normed_c) + row * sizes.state;
  warp_norm_row((is_b ? job.columns.in_b : job.columns.out_c) + from,
                is_b ? job.params.in_b_norm : job.params.out_c_norm, sizes.state, lane,
                [&](int j, float value) { out[j] = value; });
}

// A thread takes one token's head, or one token's angle.
__global__ void __launch_bounds__(kScanThreads) token_numbers_kernel(const ScanJob job) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Columns& in = job.columns;
  const std::int64_t i = std::int64_t{blockIdx.x} * kScanThreads + threadIdx.x;
  const std::int64_t pairs = job.tokens * sizes.heads;
  if (i < pairs) {
    const std::int64_t token = i / sizes.heads;
    const std::int64_t head = i - token * sizes.heads;
    const std::int64_t at = token * in.row_stride + head;
    job.weights[i] = token_weights(sizes, in.dt_raw[at], job.params.dt_bias[head], in.decay_raw[at],
                                   in.trap_raw[at]);
  } else if (i - pairs < job.tokens * sizes.angles) {
    const std::int64_t token = (i - pairs) / sizes.angles;
    const std::int64_t angle = (i - pairs) - token * sizes.angles;
    job.half_tanh[i - pairs] =
        turn_rate(sizes, in.angle_raw, token * in.row_stride, static_cast<int>(angle));
  }
}

void prepare_scan_tokens(const ScanJob& job, cudaStream_t stream) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows = 2 * job.tokens * sizes.rank * sizes.groups;
  norm_rows_kernel<<<grid_blocks(rows, kScanWarps), kScanThreads, 0, stream>>>(job);
  check_launch("mamba3_scan: norms");
  const std::int64_t numbers = job.tokens * (std::int64_t{sizes.heads} + sizes.angles);
  token_numbers_kernel<<<grid_blocks(numbers, kScanThreads), kScanThreads, 0, stream>>>(job);
  check_launch("mamba3_scan: numbers");
  keep_starts(sizes, job.states, job.slots, job.sequences, job.starts, stream);
}

}  // namespace
}  // namespace mamba3
