// Behind the walk back by mma.sync: sums over heads of what it left in bf16, and the gradients of
// the columns dt, A and trap.
#pragma once

#include <cstdint>
#include <numbers>

#include "ops/mamba3_scan_backward/scan_backward_mma_gradients_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kTotalThreads = 256;
constexpr int kMostTunedAngles = 64;

// A thread takes four numbers of a row of B or C: two pairs that were turned together.
__global__ void __launch_bounds__(kTotalThreads)
    add_head_rows_kernel(const BackwardMmaJob job, const HeadTotals totals) {
  const TokenSizes& sizes = job.scan.sizes;
  const std::int64_t elements = job.scan.tokens * sizes.rank * sizes.state;  // of a head
  const std::int64_t at = (std::int64_t{blockIdx.x} * kTotalThreads + threadIdx.x) * 4;
  if (at >= elements) return;
  const bool is_b = blockIdx.z == 0;
  const auto group = static_cast<int>(blockIdx.y);
  const int heads = sizes.heads / sizes.groups;
  const __nv_bfloat16* from =
      (is_b ? job.grad_b : job.grad_c) + std::int64_t{group} * heads * elements + at;
  float sums[4] = {};
#pragma unroll 8
  for (int head = 0; head < heads; ++head, from += elements) {
    const uint2 own = __ldcs(reinterpret_cast<const uint2*>(from));
    float v[4];
    unpack_bf16(own.x, v[0], v[1]);
    unpack_bf16(own.y, v[2], v[3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += v[i];
  }
  const std::int64_t row = at / sizes.state;
  float* to = (is_b ? totals.grad_b : totals.grad_c) + (row * sizes.groups + group) * sizes.state;
  const auto column = static_cast<int>(at - row * sizes.state);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[place_of(sizes, gradient_column(sizes.state, column + i))] = sums[i];
  }
}

// The gradients of a token's phases, by a warp: a step is pi tanh(angle) dt, so over heads they sum
// up with dt to the angles' gradients, and over angles with their tanh to that of each head's dt.
__global__ void __launch_bounds__(kTotalThreads)
    add_head_phases_kernel(const BackwardMmaJob job, float* totals) {
  constexpr int kHeads = 8;  // at once
  constexpr int kAngles = kMostTunedAngles / kWarpLanes;
  const TokenSizes& sizes = job.scan.sizes;
  const unsigned lane = threadIdx.x % kWarpLanes;
  const std::int64_t tokens = job.scan.tokens;
  const std::int64_t token =
      std::int64_t{blockIdx.x} * (kTotalThreads / kWarpLanes) + threadIdx.x / kWarpLanes;
  if (token >= tokens) return;
  float tanh[kAngles], sums[kAngles] = {};
#pragma unroll
  for (int i = 0; i < kAngles; ++i) {
    const int angle = i * kWarpLanes + static_cast<int>(lane);
    const bool is = angle < sizes.angles;
    tanh[i] = is ? 2 * static_cast<float>(job.scan.half_tanh[token * sizes.angles + angle]) : 0.0f;
  }
  for (int first = 0; first < sizes.heads; first += kHeads) {
    float along[kHeads];
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      along[j] = 0;
      if (first + j >= sizes.heads) continue;
      const std::int64_t pair = (first + j) * tokens + token;
      const auto dt = static_cast<float>(job.scan.turning[pair]);
#pragma unroll
      for (int i = 0; i < kAngles; ++i) {
        const int angle = i * kWarpLanes + static_cast<int>(lane);
        if (angle >= sizes.angles) continue;
        const float phase = __ldcs(job.grad_phase + pair * sizes.angles + angle);
        sums[i] = fmaf(phase, dt, sums[i]);
        along[j] = fmaf(phase, tanh[i], along[j]);
      }
    }
    sum_lanes<16, 1, kHeads>(along, lane);
    const int head = first + first_of_lane<16, 1, kHeads>(lane);
    if (tells<16, 1, kHeads>(lane) && head < sizes.heads) {
      job.grad_numbers[head * tokens + token].w = std::numbers::pi_v<float> * along[0];
    }
  }
#pragma unroll
  for (int i = 0; i < kAngles; ++i) {
    const int angle = i * kWarpLanes + static_cast<int>(lane);
    if (angle < sizes.angles) totals[token * sizes.angles + angle] = sums[i];
  }
}

// sigmoid(x) and 1 - sigmoid(x), each with all its digits.
struct SigmoidParts {
  double at;
  double rest;

  __device__ __forceinline__ explicit SigmoidParts(double x) {
    const double e = exp(-fabs(x));
    const double large = 1 / (1 + e), small = large * e;
    at = x >= 0 ? large : small;
    rest = x >= 0 ? small : large;
  }
};

// token_scalars_backward() of token_scalars_backward.h, for one token of one head. What dt_raw gets
// is left for the sum over tokens, too.
__device__ void finish_numbers(const BackwardMmaJob& job, std::int64_t token, int head) {
  const TokenSizes& sizes = job.scan.sizes;
  const Mamba3Columns& columns = job.scan.columns;
  const std::int64_t from = token * columns.row_stride + head;
  float4& grads = job.grad_numbers[head * job.scan.tokens + token];
  const double dt = job.scan.turning[head * job.scan.tokens + token];
  const double dt_raw = static_cast<double>(columns.dt_raw[from]) + job.scan.params.dt_bias[head];
  const double decay_raw = columns.decay_raw[from];
  const SigmoidParts lam(columns.trap_raw[from]);
  const double act = decay_activation(decay_raw, sizes.softplus);
  const double slope = sizes.softplus   ? SigmoidParts(decay_raw).at
                       : decay_raw >= 0 ? 1.0
                                        : act * act;
  const double log_decay = grads.x, now = grads.y, carry = grads.z;
  const double a = -(act < sizes.a_floor ? sizes.a_floor : act);
  const double grad_dt = grads.w + now * lam.at + carry * lam.rest + log_decay * a;
  const auto grad_raw = static_cast<float>(grad_dt * SigmoidParts(dt_raw).at);
  job.grads.dt_raw.put(token, head, grad_raw);
  job.grads.trap_raw.put(token, head, static_cast<float>((now - carry) * dt * lam.at * lam.rest));
  // At the floor itself the slope is 0, as the oracle has it.
  const bool floored = act <= sizes.a_floor;
  job.grads.decay_raw.put(token, head,
                          floored ? 0.0f : static_cast<float>(-log_decay * dt * slope));
  grads.x = grad_raw;
}

// A block takes 32 tokens of eight heads, which read one piece of memory.
__global__ void __launch_bounds__(kTotalThreads) finish_numbers_kernel(const BackwardMmaJob job) {
  constexpr int kHeads = kTotalThreads / kWarpLanes;
  const int heads = job.scan.sizes.heads;
  const unsigned across = (heads + kHeads - 1) / kHeads;
  const int head = static_cast<int>(blockIdx.x % across * kHeads + threadIdx.x / kWarpLanes);
  const std::int64_t token =
      std::int64_t{blockIdx.x / across} * kWarpLanes + threadIdx.x % kWarpLanes;
  if (head < heads && token < job.scan.tokens) finish_numbers(job, token, head);
}

// A block takes one head of a sequence.
__global__ void __launch_bounds__(kTotalThreads) sum_dt_bias_kernel(const BackwardMmaJob job) {
  __shared__ float warps[kTotalThreads / kWarpLanes];
  const int heads = job.scan.sizes.heads;
  const auto head = static_cast<int>(blockIdx.x % heads);
  const std::int64_t sequence = blockIdx.x / heads;
  const std::int64_t begin = job.scan.cu_seqlens[sequence], end = job.scan.cu_seqlens[sequence + 1];
  if (begin >= end) return;
  const float4* grads = job.grad_numbers + head * job.scan.tokens;
  float sum = 0;
#pragma unroll 4
  for (std::int64_t t = begin + threadIdx.x; t < end; t += kTotalThreads) sum += grads[t].x;
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  }
  if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  sum = 0;
  for (const float part : warps) sum += part;
  const std::int64_t piece = job.first_piece[sequence];
  job.head_sums[(piece * heads + head) * job.places.elements + job.places.dt_bias] = sum;
}

}  // namespace
}  // namespace mamba3
