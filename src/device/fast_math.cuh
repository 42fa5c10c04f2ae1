// Functions within a few units of the last place in fp32, which the units for special functions
// give in one instruction each: for what is rounded to bf16 next.
#pragma once

#include <cuda_runtime.h>

namespace mamba3 {

__device__ __forceinline__ float fast_exp2(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

__device__ __forceinline__ float fast_inverse(float v) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

constexpr float kGateRate = -1.44269504f;  // silu(v) = v / (1 + 2^(rate v))

__device__ __forceinline__ float silu_fast(float v) {
  return v * fast_inverse(1.0f + fast_exp2(kGateRate * v));
}

// Of two numbers, with one inverse for both: of a product, which must stay finite. Below -43, where
// it is less than 1e-17, a number's silu is too far from 0.
__device__ __forceinline__ float2 silu_fast(float a, float b) {
  constexpr float kMost = 0x1p62f;
  const float of_a = 1.0f + fminf(fast_exp2(kGateRate * a), kMost);
  const float of_b = 1.0f + fminf(fast_exp2(kGateRate * b), kMost);
  const float inverse = fast_inverse(of_a * of_b);
  return make_float2(a * (inverse * of_b), b * (inverse * of_a));
}

}  // namespace mamba3
