// What most kernels need: alignment, sums over a block, the gate's function.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace mamba3 {

constexpr int kWarpLanes = 32;

// Whether vectors of V can be used at `data` and at every multiple of `stride` elements behind it.
template <int V = 4, class T>
bool takes_vectors(const T* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % (V * sizeof(T)) == 0 && stride % V == 0;
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

// Pairs of bf16 numbers, the first in the lower half.
template <int V>
struct alignas(2 * V) Bf16Words {
  std::uint32_t words[V / 2];
};

// Four or eight bf16 numbers as floats, and back with one rounding each.
template <int V>
__device__ __forceinline__ void load_vector(const __nv_bfloat16* from, float (&to)[V]) {
  static_assert(V == 1 || V == 4 || V == 8);
  if constexpr (V == 1) {
    to[0] = __bfloat162float(*from);
  } else {
    const auto pairs = *reinterpret_cast<const Bf16Words<V>*>(from);
    for (int i = 0; i < V / 2; ++i) {
      to[2 * i] = __uint_as_float(pairs.words[i] << 16);
      to[2 * i + 1] = __uint_as_float(pairs.words[i] & 0xffff0000u);
    }
  }
}

// a in the lower half.
__device__ __forceinline__ std::uint32_t pack_bf16(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  std::uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

template <int V>
__device__ __forceinline__ void store_vector(const float (&from)[V], __nv_bfloat16* to) {
  static_assert(V == 1 || V == 4 || V == 8);
  if constexpr (V == 1) {
    *to = __float2bfloat16_rn(from[0]);
  } else {
    Bf16Words<V> pairs;
    for (int i = 0; i < V / 2; ++i) pairs.words[i] = pack_bf16(from[2 * i], from[2 * i + 1]);
    *reinterpret_cast<Bf16Words<V>*>(to) = pairs;
  }
}

// Waits for `threads` threads that use the same number, 1 to 15.
__device__ __forceinline__ void sync_threads(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Every lane gets the sum, which is the same in all: the exchange is symmetric.
__device__ __forceinline__ double warp_sum(double value) {
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  return value;
}

__device__ __forceinline__ double add_rounded(double a, double b) {
  return __dadd_rn(a, b);  // never part of a multiply-add
}
__device__ __forceinline__ std::int64_t add_rounded(std::int64_t a, std::int64_t b) {
  return a + b;
}
__device__ __forceinline__ int add_rounded(int a, int b) {
  return a + b;
}

// The sum of the lane's own value and of those of the lanes below.
template <class T>
__device__ __forceinline__ T warp_inclusive_sum(T value, int lane) {
#pragma unroll
  for (int step = 1; step < kWarpLanes; step *= 2) {
    const T below = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value = add_rounded(value, below);
  }
  return value;
}

// v * sigmoid(v), with the exponential of a number that is never positive.
__device__ __forceinline__ float silu(float v) {
  const float e = expf(-fabsf(v));
  return (v < 0 ? v * e : v) / (1.0f + e);
}

}  // namespace mamba3
