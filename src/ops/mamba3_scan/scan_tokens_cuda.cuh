// Around the scan on a GPU: what all heads or all blocks share of the tokens goes into the
// workspace before it, and where the layer normalises its read-outs, y comes out of it after.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan/mamba3_scan.h"

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
  // Turns and K before the first token: several blocks read them, and the first of them to end
  // writes the new ones.
  std::uint32_t* start_turns;  // [q, h, s]
  float* start_k;              // [q, r, h, n]
  float* read_out;             // [t, r, h * p] with the skip; out_norm only
};

inline void take_scan_workspace(ScanJob& job, ArenaScope& scope) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t shared = job.tokens * sizes.rank * sizes.groups * sizes.state;
  const std::int64_t heads = sizes.heads;
  job.weights = scope.allocate<TokenWeights>(job.tokens * heads);
  job.half_tanh = scope.allocate<double>(job.tokens * sizes.angles);
  job.normed_b = scope.allocate<float>(shared);
  job.normed_c = scope.allocate<float>(shared);
  job.start_turns = scope.allocate<std::uint32_t>(job.sequences * heads * sizes.angles);
  job.start_k = scope.allocate<float>(job.sequences * heads * sizes.rank * sizes.state);
  if (!sizes.out_norm) return;
  job.read_out = scope.allocate<float>(job.tokens * sizes.rank * heads * sizes.head_dim);
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
    job.half_tanh[i - pairs] = half_tanh(in.angle_raw[token * in.row_stride + angle]);
  }
}

// A thread takes one number of a sequence's start.
__global__ void __launch_bounds__(kScanThreads) keep_starts_kernel(const ScanJob job) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t turns = std::int64_t{sizes.heads} * sizes.angles;
  const std::int64_t k = std::int64_t{sizes.rank} * sizes.heads * sizes.state;
  const std::int64_t at = std::int64_t{blockIdx.x} * kScanThreads + threadIdx.x;
  const std::int64_t sequence = at / (turns + k);
  if (sequence >= job.sequences) return;
  const std::int64_t i = at - sequence * (turns + k);
  const std::int64_t slot = job.slots[sequence];
  if (i < turns) {
    job.start_turns[sequence * turns + i] = job.states.turns[slot * job.states.turns_stride + i];
  } else {
    job.start_k[sequence * k + i - turns] = job.states.k[slot * job.states.k_stride + i - turns];
  }
}

// A warp takes one head of one token: normalises its read-outs in place, then gates and sums them.
__global__ void __launch_bounds__(kScanThreads) norm_and_gate_kernel(const ScanJob job) {
  const TokenSizes& sizes = job.sizes;
  const int p = sizes.head_dim;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const std::int64_t pair =
      std::int64_t{blockIdx.x} * kScanWarps + static_cast<int>(threadIdx.x) / kWarpLanes;
  if (pair >= job.tokens * sizes.heads) return;
  const std::int64_t token = pair / sizes.heads;
  const int head = static_cast<int>(pair - token * sizes.heads);
  const std::int64_t inner = std::int64_t{sizes.heads} * p;
  const std::int64_t own = std::int64_t{head} * p;
  const HeadGate gate = head_gate(sizes, job.params, head);
  float* rows = job.read_out + token * sizes.rank * inner + own;
  for (int r = 0; r < sizes.rank; ++r) {
    float* row = rows + r * inner;
    warp_norm_row(row, job.params.out_norm + own, p, lane,
                  [&](int j, float value) { row[j] = value; });
  }
  // Each lane reads what it wrote itself.
  for (int column = lane; column < p; column += kWarpLanes) {
    const float z = job.columns.z[token * job.columns.row_stride + own + column];
    float sum = gated(gate, 0, column, z, rows[column]);
    for (int r = 1; r < sizes.rank; ++r) sum += gated(gate, r, column, z, rows[r * inner + column]);
    job.y[token * job.y_stride + own + column] = sum;
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
  const std::int64_t starts =
      job.sequences * sizes.heads * (sizes.angles + std::int64_t{sizes.rank} * sizes.state);
  keep_starts_kernel<<<grid_blocks(starts, kScanThreads), kScanThreads, 0, stream>>>(job);
  check_launch("mamba3_scan: starts");
}

void norm_and_gate(const ScanJob& job, cudaStream_t stream) {
  const std::int64_t pairs = job.tokens * job.sizes.heads;
  norm_and_gate_kernel<<<grid_blocks(pairs, kScanWarps), kScanThreads, 0, stream>>>(job);
  check_launch("mamba3_scan: out-norm");
}

}  // namespace
}  // namespace mamba3
