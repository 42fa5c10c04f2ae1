// What the kernels that take the loss of rows of logits are made of: a row's threads, its vectors,
// its sum of exponentials, its gradient.
#pragma once

#include <cuda_bf16.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "device/kernel_helpers.cuh"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/cross_entropy/softmax_loss_cuda.h"

namespace mamba3 {

constexpr int kLogitVector = 4;

template <int N>
using LogitVectors = float[N][kLogitVector];

// A row's threads: a warp of a block of several, or a block.
template <int kTeam>
struct RowTeam {
  static constexpr int kRows = kTeam == kWarpLanes ? 8 : 1;  // of a block
  static constexpr int kWarps = kTeam / kWarpLanes;

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x) % kTeam; }
};

template <class T, class Combine>
__device__ __forceinline__ T combine_warp(T value, const Combine& combine) {
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  }
  return value;
}

// Every thread gets what all of the team have, combined in one order; what they read before may be
// overwritten. Once a kernel and type.
template <int kTeam, class T, class Combine>
__device__ __forceinline__ T combine_team(T value, T nothing, const Combine& combine) {
  value = combine_warp(value, combine);
  constexpr int kWarps = RowTeam<kTeam>::kWarps;
  if constexpr (kWarps > 1) {
    __shared__ T warps[kWarps];
    const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
    if (lane == 0) warps[threadIdx.x / kWarpLanes] = value;
    __syncthreads();
    value = combine_warp(lane < kWarps ? warps[lane] : nothing, combine);
  } else {
    __syncwarp();
  }
  return value;
}

// Of a row, a thread's vectors number first, first + kTeam, ..; -inf behind the row's end.
template <int kTeam, int N>
__device__ __forceinline__ void load_vectors(const float* logits, int v, int first,
                                             LogitVectors<N>& out) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int at = (first + i * kTeam) * kLogitVector;
    if (at + kLogitVector <= v) {
      load_vector<kLogitVector>(logits + at, out[i]);
    } else {
#pragma unroll
      for (int j = 0; j < kLogitVector; ++j) out[i][j] = at + j < v ? logits[at + j] : -INFINITY;
    }
  }
}

template <int kTeam, int N, class Y>
__device__ __forceinline__ void store_vectors(const LogitVectors<N>& values, int v, int first,
                                              Y* out) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int at = (first + i * kTeam) * kLogitVector;
    if (at + kLogitVector <= v) {
      store_vector<kLogitVector>(values[i], out + at);
    } else {
#pragma unroll
      for (int j = 0; j < kLogitVector; ++j) {
        if (at + j < v) out[at + j] = Y(values[i][j]);
      }
    }
  }
}

// What is subtracted before exponentials are taken: with it -inf has one, which is 0.
__device__ __forceinline__ float finite_shift(float largest) {
  return fmaxf(largest, -FLT_MAX);
}

// Of the logits that were seen. A NaN among them makes the sum NaN.
struct Exponentials {
  float largest = -INFINITY;
  double sum = 0;  // of e^(logit - finite_shift(largest))

  // The exponentials take the logits' place.
  template <int N>
  __device__ __forceinline__ void add(LogitVectors<N>& logits) {
    float most = largest;
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < kLogitVector; ++j) most = fmaxf(most, logits[i][j]);
    }
    rescale(most);
    const float shift = finite_shift(largest);
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < kLogitVector; ++j) {
        logits[i][j] = expf(logits[i][j] - shift);
        sum += static_cast<double>(logits[i][j]);
      }
    }
  }
  __device__ __forceinline__ void rescale(float most) {
    if (most == largest) return;
    sum *= static_cast<double>(expf(finite_shift(largest) - finite_shift(most)));
    largest = most;
  }
  // Of all threads of the row.
  template <int kTeam>
  __device__ __forceinline__ void combine() {
    rescale(combine_team<kTeam>(largest, -INFINITY, [](float a, float b) { return fmaxf(a, b); }));
    sum = combine_team<kTeam>(sum, 0.0, [](double a, double b) { return a + b; });
  }
};

// A row's gradient: kBf16 lies behind where half of the logits were, so that from the back it
// overwrites what has been read.
template <class Y>
__host__ __device__ Y* gradient_row(float* logits, std::int64_t stride) {
  return reinterpret_cast<Y*>(logits) + (sizeof(Y) < sizeof(float) ? stride : 0);
}

// Y: float or bf16, the type of the gradient; void where none is wanted.
template <class Y>
constexpr bool kWanted = !std::is_same_v<Y, void>;

// What the sum of exponentials says of a row.
struct RowSoftmax {
  bool sound;     // else all of it is NaN
  double factor;  // the gradient of a logit, the target's apart, is factor * e^(logit - largest)
  double below;   // how far the target's logit is
};

struct LogitRow {
  const SoftmaxLossRowsArgs& args;
  std::int64_t at;
  float* logits;
  int v, target;
  bool in_range;
  float of_target;

  __device__ __forceinline__ LogitRow(const SoftmaxLossRowsArgs& args_in, std::int64_t at_in)
      : args(args_in),
        at(at_in),
        logits(args.logits + at * args.stride),
        v(static_cast<int>(args.v)),
        target(args.targets[at]),
        in_range(target >= 0 && target < v),
        of_target(in_range ? logits[target] : NAN) {}

  // A row that takes no part.
  template <int kTeam, class Y>
  __device__ __forceinline__ void leave_out() const {
    const int thread = RowTeam<kTeam>::thread();
    if (thread == 0) write({});
    if constexpr (kWanted<Y>) {
      Y* const out = gradient_row<Y>(logits, args.stride);
      for (int i = thread; i < v; i += kTeam) out[i] = Y(0.0f);
    }
  }
  // What all threads know in the end; the first of them writes the loss.
  __device__ __forceinline__ RowSoftmax finish(const Exponentials& all, int thread) const {
    const bool sound = isfinite(all.largest) && !isnan(all.sum) && in_range;
    const double log_sum = log(all.sum);
    const double below = static_cast<double>(all.largest) - static_cast<double>(of_target);
    const double loss = sound ? log_sum + below : NAN;
    const double z = sound ? static_cast<double>(all.largest) + log_sum : NAN;
    if (thread == 0) write({loss, z, sound && below == 0 ? 1 : 0, 1});
    return {sound, args.grad_scale * (1 + 2 * args.z_weight * z) / all.sum, below};
  }
  // By the thread that wrote the target's vector. A probability near 1 in fp32 has lost what it
  // lacks of 1, so this is in double.
  template <int kTeam, class Y>
  __device__ __forceinline__ void write_target(const RowSoftmax& softmax, Y* gradient) const {
    if (target / kLogitVector % kTeam != RowTeam<kTeam>::thread()) return;
    const double value = softmax.factor * exp(-softmax.below) - args.grad_scale;
    gradient[target] = Y(static_cast<float>(value));
  }

 private:
  __device__ __forceinline__ void write(const RowLoss& loss) const {
    args.losses[at] = loss;
    if (args.plain_losses != nullptr) args.plain_losses[at] = loss.loss;
  }
};

}  // namespace mamba3
