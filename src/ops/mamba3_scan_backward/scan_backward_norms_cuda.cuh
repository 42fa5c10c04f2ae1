// The norms of B's and C's rows, backward.
#pragma once

#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan_backward/scan_backward_columns_cuda.cuh"

namespace mamba3 {

// What the gradients of the rows of B, or of C, are finished with.
struct NormedRows {
  const float* raw;  // [t, r, g, n] rows of r, g, n raw_stride apart
  std::int64_t raw_stride;
  const float* weight;  // [n]
  GradientColumn out;
};

namespace {

// A warp's part of the gradient of a norm's weights; kState: n or more.
template <int kState>
struct NormSums {
  static constexpr int kHeld = kState / kWarpLanes;
  float v[kHeld];
};

// row / rms(row) * weight, backward, by one warp: of the row of a token that begins at a column,
// from the gradients [count] of what it became. Adds to the gradient of the weight. In double: what
// is left across the row is little where it has few elements.
template <int kState>
__device__ __forceinline__ void norm_row_backward(const NormedRows& rows, const float* grads,
                                                  int count, int lane, std::int64_t token,
                                                  std::int64_t column, NormSums<kState>& sums) {
  constexpr int kHeld = NormSums<kState>::kHeld;
  const float* raw = rows.raw + token * rows.raw_stride + column;
  float v[kHeld], grad[kHeld];
  double squares = 0, along = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int j = i * kWarpLanes + lane;
    v[i] = j < count ? raw[j] : 0.0f;
    grad[i] = j < count ? grads[j] : 0.0f;
    const double weighted = double{grad[i]} * (j < count ? rows.weight[j] : 0.0f);
    squares = fma(double{v[i]}, double{v[i]}, squares);
    along = fma(weighted, double{v[i]}, along);
  }
  const double scale = 1.0 / sqrt(warp_sum(squares) / count + kBcNormEps);
  along = warp_sum(along) * scale * scale / count;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int j = i * kWarpLanes + lane;
    if (j >= count) continue;
    const double weighted = double{grad[i]} * rows.weight[j];
    rows.out.put(token, column + j, static_cast<float>((weighted - along * v[i]) * scale));
    sums.v[i] = fmaf(grad[i], static_cast<float>(v[i] * scale), sums.v[i]);
  }
}

// Sums over a block's warps, to out [state]. All its threads come here.
template <int kState, int kWarps>
__device__ __forceinline__ void tell_norm_sums(const NormSums<kState>& sums, int state,
                                               float (&shared)[kWarps][kState], float* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
#pragma unroll
  for (int i = 0; i < NormSums<kState>::kHeld; ++i) {
    shared[warp][i * kWarpLanes + lane] = sums.v[i];
  }
  __syncthreads();
  for (int j = static_cast<int>(threadIdx.x); j < state; j += kWarps * kWarpLanes) {
    float sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += shared[i][j];
    out[j] = sum;
  }
}

}  // namespace
}  // namespace mamba3
