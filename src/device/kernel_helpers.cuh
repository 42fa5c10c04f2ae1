// What most kernels need: alignment, sums over a block, the gate's function.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mamba3 {

constexpr int kWarpLanes = 32;

// Whether float4 can be used at `data` and at every multiple of `stride` floats behind it.
inline bool takes_float4(const float* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % sizeof(float4) == 0 && stride % 4 == 0;
}

template <int V>
__device__ __forceinline__ void load_vector(const float* from, float (&to)[V]) {
  static_assert(V == 1 || V == 4);
  if constexpr (V == 4) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  } else {
    to[0] = *from;
  }
}

template <int V>
__device__ __forceinline__ void store_vector(const float (&from)[V], float* to) {
  static_assert(V == 1 || V == 4);
  if constexpr (V == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
  } else {
    *to = from[0];
  }
}

// Every lane gets the sum, which is the same in all: the exchange is symmetric.
__device__ __forceinline__ double warp_sum(double value) {
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  return value;
}

// v * sigmoid(v), with the exponential of a number that is never positive.
__device__ __forceinline__ float silu(float v) {
  const float e = expf(-fabsf(v));
  return (v < 0 ? v * e : v) / (1.0f + e);
}

}  // namespace mamba3
