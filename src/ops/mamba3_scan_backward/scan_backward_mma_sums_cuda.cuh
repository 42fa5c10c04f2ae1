// Behind the walk back: the gradients of the columns dt, A, trap and angle.
#pragma once

#include <cstdint>
#include <numbers>

#include "ops/mamba3_scan_backward/scan_backward_mma_gradients_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kTotalThreads = 256;
constexpr int kTotalWarps = kTotalThreads / kWarpLanes;
constexpr int kPhaseLanes = 8;  // of a token, with fours of its angles

// Calls f(number of a four, its first angle) for the lane's fours of a token's angles.
template <int kFours, class F>
__device__ __forceinline__ void for_fours(unsigned lane, const F& f) {
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    f(i, (i * kPhaseLanes + static_cast<int>(lane % kPhaseLanes)) * 4);
  }
}

// The gradients of a token's angles, from the sums over heads, and the zeros behind them.
template <int kFours>
__device__ __forceinline__ void put_angles(const BackwardMmaJob& job, std::int64_t token,
                                           unsigned lane, const float (&sums)[4 * kFours]) {
  const int angles = job.scan.sizes.angles;
  for_fours<kFours>(lane, [&](int i, int angle) {
    if (angle >= angles) return;
    const double* half_tanh = job.scan.half_tanh + token * angles + angle;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const double at = 2 * half_tanh[e];
      const double slope = std::numbers::pi * ((1 - at) * (1 + at));
      job.grads.angle_raw.put(token, angle + e, static_cast<float>(sums[4 * i + e] * slope));
    }
  });
  for (int i = static_cast<int>(lane % kPhaseLanes); i < job.zero_columns; i += kPhaseLanes) {
    job.grads.angle_raw.put(token, angles + i, 0.0f);
  }
}

// The gradients of tokens' phases, a token by kPhaseLanes lanes: a step is pi tanh(angle) dt, so
// over heads they sum up with dt to the angles' gradients, and over angles with their tanh to that
// of each head's dt. They come through shared memory, some heads ahead: registers that loads are
// to fill the compiler would rather spare.
template <int kFours>
__global__ void __launch_bounds__(kTotalThreads)
    add_head_phases_kernel(const __grid_constant__ BackwardMmaJob job) {
  constexpr int kTokens = kWarpLanes / kPhaseLanes;  // of a warp
  constexpr int kHeads = 4 / kFours;                 // at once
  __shared__ float4 staged[2][kTotalWarps][kHeads][kFours][kWarpLanes];
  const int heads = job.scan.sizes.heads, angles = job.scan.sizes.angles;
  const unsigned lane = threadIdx.x % kWarpLanes, warp = threadIdx.x / kWarpLanes;
  const std::int64_t tokens = job.scan.tokens;
  const std::int64_t begin = (std::int64_t{blockIdx.x} * kTotalWarps + warp) * kTokens;
  const std::int64_t token = begin + lane / kPhaseLanes;
  const bool is = token < tokens;
  const auto request = [&](int first) {
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      for_fours<kFours>(lane, [&](int i, int angle) {
        const bool there = is && first + j < heads && angle < angles;
        const std::int64_t from = ((first + j) * tokens + token) * angles + angle;
        copy_piece_async(shared_address(&staged[first / kHeads % 2][warp][j][i][lane]),
                         job.grad_phase + (there ? from : 0), there);
      });
    }
    __pipeline_commit();
  };
  const auto load_dt = [&](int first) {  // of head lane / kTokens, token lane % kTokens
    const int head = first + static_cast<int>(lane) / kTokens;
    const std::int64_t own = begin + lane % kTokens;
    return lane < kTokens * kHeads && head < heads && own < tokens
               ? job.scan.turning[head * tokens + own]
               : 0.0;
  };
  float tanh[4 * kFours] = {}, sums[4 * kFours] = {};
  request(0);
  double next_dt = load_dt(0);
  for_fours<kFours>(lane, [&](int i, int angle) {
    if (!is || angle >= angles) return;
    const double* half_tanh = job.scan.half_tanh + token * angles + angle;
#pragma unroll
    for (int e = 0; e < 4; ++e) tanh[4 * i + e] = 2 * static_cast<float>(half_tanh[e]);
  });
  for (int first = 0; first < heads; first += kHeads) {
    const auto dt = static_cast<float>(next_dt);
    request(first + kHeads);
    next_dt = load_dt(first + kHeads);
    __pipeline_wait_prior(1);
    float along[kHeads] = {};
#pragma unroll
    for (int j = 0; j < kHeads; ++j) {
      const float own_dt = __shfl_sync(0xffffffffu, dt, j * kTokens + lane / kPhaseLanes);
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        const float4 four = staged[first / kHeads % 2][warp][j][i][lane];
        const float v[] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          sums[4 * i + e] = fmaf(v[e], own_dt, sums[4 * i + e]);
          along[j] = fmaf(v[e], tanh[4 * i + e], along[j]);
        }
      }
    }
    sum_lanes<kPhaseLanes / 2, 1, kHeads>(along, lane);
    const int head = first + first_of_lane<kPhaseLanes / 2, 1, kHeads>(lane);
    if (is && head < heads && tells<kPhaseLanes / 2, 1, kHeads>(lane)) {
      job.grad_dt[head * tokens + token] = std::numbers::pi_v<float> * along[0];
    }
  }
  if (is) put_angles<kFours>(job, token, lane, sums);
}

// sigmoid(x) and 1 - sigmoid(x), each with all its digits.
struct SigmoidParts {
  float at;
  float rest;

  __device__ __forceinline__ explicit SigmoidParts(float x) {
    const float e = expf(-fabsf(x));
    const float large = 1 / (1 + e), small = large * e;
    at = x >= 0 ? large : small;
    rest = x >= 0 ? small : large;
  }
};

// With respect to a token's numbers in one head.
struct NumberGradients {
  float log_decay;
  float now;
  float carry;
  float dt;
};

// token_scalars_backward() of token_scalars_backward.h, for one token of one head. Returns what
// dt_raw gets. In double is what is held against the floor: as forward. What phases move by is dt,
// unless their steps are fixed.
__device__ __forceinline__ float finish_numbers(const BackwardMmaJob& job, std::int64_t token,
                                                int head, float turning,
                                                const NumberGradients& grads) {
  const TokenSizes& sizes = job.scan.sizes;
  const Mamba3Columns& columns = job.scan.columns;
  const std::int64_t from = token * columns.row_stride + head;
  const float decay_raw = columns.decay_raw[from];
  const float raw = columns.dt_raw[from] + job.scan.params.dt_bias[head];
  const float dt = sizes.fixed_steps ? static_cast<float>(device_softplus(raw)) : turning;
  const SigmoidParts dt_slope(raw);
  const SigmoidParts lam(columns.trap_raw[from]);
  const double act = decay_activation(decay_raw, sizes.softplus);
  const auto own_act = static_cast<float>(act);
  const float slope = sizes.softplus   ? SigmoidParts(decay_raw).at
                      : decay_raw >= 0 ? 1.0f
                                       : own_act * own_act;
  const float a = -static_cast<float>(act < sizes.a_floor ? sizes.a_floor : act);
  const float grad_dt =
      fmaf(grads.log_decay, a, fmaf(grads.carry, lam.rest, fmaf(grads.now, lam.at, grads.dt)));
  const float grad_raw = grad_dt * dt_slope.at;
  job.grads.dt_raw.put(token, head, grad_raw);
  job.grads.trap_raw.put(token, head, (grads.now - grads.carry) * dt * lam.at * lam.rest);
  // At the floor itself the slope is 0, as the oracle has it.
  job.grads.decay_raw.put(token, head, act <= sizes.a_floor ? 0.0f : -grads.log_decay * dt * slope);
  return grad_raw;
}

// A block takes 32 tokens of 32 heads. Numbers are [h, t] and columns [t, h]: shared memory turns
// one into the other. What dt_raw gets is left for the sum over tokens, too.
__global__ void __launch_bounds__(kTotalThreads)
    finish_numbers_kernel(const __grid_constant__ BackwardMmaJob job) {
  constexpr int kSide = kWarpLanes;
  constexpr int kEach = kSide / kTotalWarps;   // rows of the tile by one warp
  __shared__ float tile[5][kSide][kSide + 1];  // [number, head, token]
  const int heads = job.scan.sizes.heads;
  const std::int64_t tokens = job.scan.tokens;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const std::int64_t first_token = std::int64_t{blockIdx.x} * kSide;
  const int first_head = static_cast<int>(blockIdx.y) * kSide;
  const auto is = [&](int row, int column) {
    return first_head + row < heads && first_token + column < tokens;
  };
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = warp * kEach + i;
    if (!is(row, lane)) continue;
    const std::int64_t pair = (first_head + row) * tokens + first_token + lane;
    tile[0][row][lane] = job.grad_log_decay[pair];
    tile[1][row][lane] = job.grad_now[pair];
    tile[2][row][lane] = job.grad_carry[pair];
    tile[3][row][lane] = job.grad_dt[pair];
    tile[4][row][lane] = static_cast<float>(job.scan.turning[pair]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int t = warp * kEach + i;
    if (!is(lane, t)) continue;
    tile[3][lane][t] =
        finish_numbers(job, first_token + t, first_head + lane, tile[4][lane][t],
                       {tile[0][lane][t], tile[1][lane][t], tile[2][lane][t], tile[3][lane][t]});
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = warp * kEach + i;
    if (!is(row, lane)) continue;
    job.grad_dt[(first_head + row) * tokens + first_token + lane] = tile[3][row][lane];
  }
}

// A block takes one head of a sequence.
__global__ void __launch_bounds__(kTotalThreads)
    sum_dt_bias_kernel(const __grid_constant__ BackwardMmaJob job) {
  __shared__ float warps[kTotalThreads / kWarpLanes];
  const int heads = job.scan.sizes.heads;
  const auto head = static_cast<int>(blockIdx.x % heads);
  const std::int64_t sequence = blockIdx.x / heads;
  const std::int64_t begin = job.scan.cu_seqlens[sequence], end = job.scan.cu_seqlens[sequence + 1];
  if (begin >= end) return;
  const float* grads = job.grad_dt + head * job.scan.tokens;
  float sum = 0;
#pragma unroll 4
  for (std::int64_t t = begin + threadIdx.x; t < end; t += kTotalThreads) sum += grads[t];
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
