// Behind the chunks of the general backward pass: gradients of phases are those of all tokens
// behind; with them the gradients of a token's own numbers are whole.
#pragma once

#include <cstdint>
#include <numbers>

#include "device/kernel_helpers.cuh"
#include "ops/mamba3_scan_backward/scan_backward_rows_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kTermThreads = 128;
constexpr int kTermWarps = kTermThreads / kWarpLanes;

// From chunks' own gradients of their phases to those of the tokens behind each; and from that of
// the final angles to that of the first ones.
__global__ void __launch_bounds__(kTermThreads)
    sum_phase_gradients_kernel(const BackwardJobCuda job) {
  const int angles = job.sizes.angles;
  const std::int64_t i = std::int64_t{blockIdx.x} * kTermThreads + threadIdx.x;
  const std::int64_t sequence = i / angles / job.heads;
  if (sequence >= job.sequences) return;
  const auto h = static_cast<int>(i / angles % job.heads);
  const auto angle = static_cast<int>(i % angles);
  float& state = job.grad_states.angle[job.slots[sequence] * job.grad_states.angle_stride +
                                       std::int64_t{job.first_head + h} * angles + angle];
  float behind = state;
  const int begin = job.chunks.first[sequence];
  for (int end = job.chunks.first[sequence + 1]; end > begin; end -= 2 * kBatch) {
    const auto place = [&](int j) -> float& {
      return job.phases[job.chunk_at(end - 1 - j, h) * angles + angle];
    };
    float own[2 * kBatch];
#pragma unroll
    for (int j = 0; j < 2 * kBatch; ++j) own[j] = end - j > begin ? place(j) : 0.0f;
#pragma unroll
    for (int j = 0; j < 2 * kBatch; ++j) {
      if (end - j <= begin) continue;
      place(j) = behind;
      behind += own[j];
    }
  }
  state = behind;
}

struct Sigmoid {
  double at;
  double rest;

  __device__ explicit Sigmoid(double x) {
    const double e = exp(-fabs(x));
    const double large = 1 / (1 + e);
    const double small = large * e;
    at = x >= 0 ? large : small;
    rest = x >= 0 ? small : large;
  }
};

// The slope of decay_activation(), which is 1 at 0 (docs/SEMANTICS.md, section 8).
__device__ __forceinline__ double decay_slope(double x, bool softplus) {
  if (softplus) return Sigmoid(x).at;
  return x >= 0 ? 1.0 : 1 / ((1 - x) * (1 - x));
}

// A token's numbers backward, as token_scalars_backward(). Returns the gradient of dt_raw.
__device__ __forceinline__ float store_numbers(const BackwardJobCuda& job, int head,
                                               std::int64_t token, double dt,
                                               const ChunkTermGradients& grads, double grad_dt,
                                               double grad_carry) {
  const std::int64_t at = token * job.columns.row_stride + head;
  const double decay_raw = job.columns.decay_raw[at];
  const Sigmoid dt_slope(static_cast<double>(job.columns.dt_raw[at]) + job.params.dt_bias[head]);
  const Sigmoid lam(job.columns.trap_raw[at]);
  const double act = decay_activation(decay_raw, job.sizes.softplus);
  const bool floored = act < job.sizes.a_floor;
  const double a = -(floored ? job.sizes.a_floor : act);
  grad_dt += grads.now * lam.at + grad_carry * lam.rest + grads.log_decay * a;
  const auto grad_dt_raw = static_cast<float>(grad_dt * dt_slope.at);
  job.out.dt_raw.put(token, head, grad_dt_raw);
  job.out.trap_raw.put(token, head,
                       static_cast<float>((grads.now - grad_carry) * dt * lam.at * lam.rest));
  // At the floor itself the slope is 0, as the oracle has it.
  const bool is_free = !floored && act != job.sizes.a_floor;
  job.out.decay_raw.put(token, head,
                        is_free ? static_cast<float>(-grads.log_decay * dt *
                                                     decay_slope(decay_raw, job.sizes.softplus))
                                : 0.0f);
  return grad_dt_raw;
}

// A block takes a chunk of one head, which has no more tokens than a warp lanes.
__global__ void __launch_bounds__(kTermThreads) chunk_numbers_kernel(const BackwardJobCuda job) {
  __shared__ double grad_dt[kWarpLanes];  // through the phases
  const ChunkPlace at(job);
  if (at.tokens == 0) return;
  const int angles = job.sizes.angles;
  const int moved = job.sizes.fixed_steps ? 0 : angles;  // fixed steps hang on nothing
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const float* behind = job.phases + job.chunk_at(at.chunk, at.h) * angles;
  for (int t = static_cast<int>(threadIdx.x) / kWarpLanes; t < at.tokens; t += kTermWarps) {
    const double dt = job.terms[at.token_at(job, t)].dt;
    float* phase = job.grad_phase + at.token_at(job, t) * angles;
    const double* rates = job.turn_rates + (at.piece.begin + std::int64_t{t}) * angles;
    double sum = 0;
    for (int i = lane; i < moved; i += kWarpLanes) {
      const float grad = phase[i] + behind[i];
      sum = fma(double{grad}, rates[i], sum);
      phase[i] = grad * static_cast<float>(dt);
    }
    sum = warp_sum(sum);
    if (lane == 0) grad_dt[t] = 2 * std::numbers::pi * sum;  // a step is pi tanh(angle) dt
  }
  __syncthreads();
  if (threadIdx.x >= kWarpLanes) return;
  double grad_dt_raw = 0;
  if (lane < at.tokens) {
    const std::int64_t token = at.token_at(job, lane);
    const bool is_first = lane == 0 && at.chunk == job.chunks.first[at.piece.sequence];
    const double grad_carry =
        is_first ? double{job.grad_carry[std::int64_t{at.piece.sequence} * job.heads + at.h]}
                 : job.term_grads[token - 1].source;
    grad_dt_raw = store_numbers(job, at.head, at.piece.begin + lane, job.terms[token].dt,
                                job.term_grads[token], grad_dt[lane], grad_carry);
  }
  grad_dt_raw = warp_sum(grad_dt_raw);
  if (lane == 0) {
    job.sums_of(at.chunk, at.h)[job.places.dt_bias] = static_cast<float>(grad_dt_raw);
  }
}

}  // namespace
}  // namespace mamba3
