// Formulas of the scans in chunks: one of each for Hopper's kernels and for those of every card.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "device/fast_math.cuh"

namespace mamba3 {
namespace {

__device__ __forceinline__ void unpack_bf16(std::uint32_t bits, float& a, float& b) {
  a = __uint_as_float(bits << 16);
  b = __uint_as_float(bits & 0xffff0000u);
}

// What a chunk's products need to know of a token. Decays are base-2 logarithms from the chunk's
// start on, in two floats: what a strong decay leaves of the small ones after it is in the second.
struct TokenTerms {
  float decay_high;
  float decay_low;
  float fill;  // s: the weight of its outer product when a later token reads it
  float now;   // gamma: when it reads its own
};

// The weight of an earlier token's outer product for a later one's read-out.
__device__ __forceinline__ float pair_weight(const TokenTerms& row, const TokenTerms& column) {
  return fast_exp2((row.decay_high - column.decay_high) + (row.decay_low - column.decay_low)) *
         column.fill;
}

__device__ __forceinline__ float2 biased(__half2 normed, float2 weight, float2 bias) {
  const float2 v = __half22float2(normed);
  return make_float2(fmaf(v.x, weight.x, bias.x), fmaf(v.y, weight.y, bias.y));
}

__device__ __forceinline__ float2 turned(float2 v, float2 cos_sin) {
  return make_float2(fmaf(-v.y, cos_sin.y, v.x * cos_sin.x), fmaf(v.y, cos_sin.x, v.x * cos_sin.y));
}

// To about 2^-21, far within what rounding to bf16 takes; NaN if `broken` is.
__device__ __forceinline__ float2 fast_cos_sin(std::uint32_t turns, float broken) {
  constexpr float kRadians = 1.4629180792671596e-9f;  // 2 pi / 2^32
  const float angle = fmaf(static_cast<float>(static_cast<std::int32_t>(turns)), kRadians, broken);
  return make_float2(__cosf(angle), __sinf(angle));
}

__device__ __forceinline__ float gate_of(float z, float rate, float scale) {
  return z * scale * fast_inverse(1.0f + fast_exp2(rate * z));
}

}  // namespace
}  // namespace mamba3
