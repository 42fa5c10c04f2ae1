// Where several blocks walk one head of a sequence, columns of it each: what they all read at the
// start, before the first of them to end writes the new state; and norms over a head, which need
// the columns of all.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "core/arena.h"
#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"

namespace mamba3 {

// Turns and K before the first token.
struct ScanStarts {
  std::uint32_t* turns;  // [q, h, s]
  float* k;              // [q, r, h, n]
};

// Read-outs with the skip, and what becomes of them. T: float or bf16.
template <class T>
struct ReadOuts {
  TokenSizes sizes;
  Mamba3Params params;
  float* rows;  // [t, r, h * p]
  const T* z;   // [t, h * p]
  std::int64_t z_stride;
  T* y;  // [t, h * p]
  std::int64_t y_stride;
  std::int64_t tokens;
};

inline ScanStarts take_starts(const TokenSizes& sizes, std::int64_t sequences, ArenaScope& scope) {
  const std::int64_t heads = sequences * sizes.heads;
  return {scope.allocate<std::uint32_t>(heads * sizes.angles),
          scope.allocate<float>(heads * sizes.rank * sizes.state)};
}

inline float* take_read_outs(const TokenSizes& sizes, std::int64_t tokens, ArenaScope& scope) {
  if (!sizes.out_norm) return nullptr;
  return scope.allocate<float>(tokens * sizes.rank * sizes.heads * sizes.head_dim);
}

namespace {

constexpr int kColumnThreads = 256;
constexpr int kColumnWarps = kColumnThreads / kWarpLanes;

// A thread takes one number of a sequence's start.
__global__ void __launch_bounds__(kColumnThreads)
    keep_starts_kernel(const TokenSizes sizes, const Mamba3States states, const std::int32_t* slots,
                       std::int64_t sequences, const ScanStarts to) {
  const std::int64_t turns = std::int64_t{sizes.heads} * sizes.angles;
  const std::int64_t k = std::int64_t{sizes.rank} * sizes.heads * sizes.state;
  const std::int64_t at = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  const std::int64_t sequence = at / (turns + k);
  if (sequence >= sequences) return;
  const std::int64_t i = at - sequence * (turns + k);
  const std::int64_t slot = slots[sequence];
  if (i < turns) {
    to.turns[sequence * turns + i] = states.turns[slot * states.turns_stride + i];
  } else {
    to.k[sequence * k + i - turns] = states.k[slot * states.k_stride + i - turns];
  }
}

__device__ __forceinline__ float widened(float v) {
  return v;
}
__device__ __forceinline__ float widened(__nv_bfloat16 v) {
  return __bfloat162float(v);
}
__device__ __forceinline__ void put(float v, float& to) {
  to = v;
}
__device__ __forceinline__ void put(float v, __nv_bfloat16& to) {
  to = __float2bfloat16_rn(v);
}

// A warp takes one head of one token: normalises its read-outs in place, then gates and sums them.
template <class T>
__global__ void __launch_bounds__(kColumnThreads) norm_and_gate_kernel(const ReadOuts<T> job) {
  const TokenSizes& sizes = job.sizes;
  const int p = sizes.head_dim;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const std::int64_t pair =
      std::int64_t{blockIdx.x} * kColumnWarps + static_cast<int>(threadIdx.x) / kWarpLanes;
  if (pair >= job.tokens * sizes.heads) return;
  const std::int64_t token = pair / sizes.heads;
  const int head = static_cast<int>(pair - token * sizes.heads);
  const std::int64_t inner = std::int64_t{sizes.heads} * p;
  const std::int64_t own = std::int64_t{head} * p;
  const HeadGate gate = head_gate(sizes, job.params, head);
  float* rows = job.rows + token * sizes.rank * inner + own;
  for (int r = 0; r < sizes.rank; ++r) {
    float* row = rows + r * inner;
    warp_norm_row(row, job.params.out_norm + own, p, lane,
                  [&](int j, float value) { row[j] = value; });
  }
  // Each lane reads what it wrote itself.
  for (int column = lane; column < p; column += kWarpLanes) {
    const float z = widened(job.z[token * job.z_stride + own + column]);
    float sum = gated(gate, 0, column, z, rows[column]);
    for (int r = 1; r < sizes.rank; ++r) sum += gated(gate, r, column, z, rows[r * inner + column]);
    put(sum, job.y[token * job.y_stride + own + column]);
  }
}

void keep_starts(const TokenSizes& sizes, const Mamba3States& states, const std::int32_t* slots,
                 std::int64_t sequences, const ScanStarts& to, cudaStream_t stream) {
  const std::int64_t numbers =
      sequences * sizes.heads * (sizes.angles + std::int64_t{sizes.rank} * sizes.state);
  keep_starts_kernel<<<grid_blocks(numbers, kColumnThreads), kColumnThreads, 0, stream>>>(
      sizes, states, slots, sequences, to);
  check_launch("mamba3_scan: starts");
}

template <class T>
void norm_and_gate(const ReadOuts<T>& job, cudaStream_t stream) {
  const std::int64_t pairs = job.tokens * job.sizes.heads;
  norm_and_gate_kernel<T><<<grid_blocks(pairs, kColumnWarps), kColumnThreads, 0, stream>>>(job);
  check_launch("mamba3_scan: out-norm");
}

}  // namespace
}  // namespace mamba3
