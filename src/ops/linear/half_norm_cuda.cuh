// The halves of a norm that two products share (fused_linear.h): the one before it adds to the
// residual; the one behind it multiplies rows by their scales.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/linear/fused_linear.h"

namespace mamba3 {
namespace {

// What the sums of a row of x are multiplied by.
struct RowScales {
  const float* squares;  // [rows, parts], or null: 1
  int rows, parts;
  float of_mean;  // what makes the sum of the parts a mean
  float eps;
};

// The residual that sums join, and what the next norm gets of it.
struct ResidualJob {
  float* residual;
  __nv_bfloat16* scaled;
  std::int64_t stride, scaled_stride;
  const float* weight;
  float* squares;  // [rows, parts]
  int rows, parts;
};

inline RowScales row_scales(const FusedLinearArgs& args) {
  const std::int64_t k = args.x.shape[1];
  return {args.squares, static_cast<int>(args.x.shape[0]), static_cast<int>(k / kNormPart),
          1.0f / static_cast<float>(k), args.norm_eps};
}

inline ResidualJob residual_job(const FusedLinearArgs& args) {
  const HalfNorm& half = args.half_norm;
  if (half.weight == nullptr) return {};
  ResidualJob job{};
  job.residual = args.y.floats();
  job.scaled = static_cast<__nv_bfloat16*>(half.scaled.data);
  job.stride = args.y.stride[0];
  job.scaled_stride = half.scaled.stride[0];
  job.weight = half.weight;
  job.squares = half.squares;
  job.rows = static_cast<int>(args.y.shape[0]);
  job.parts = static_cast<int>(args.y.shape[1] / kNormPart);
  return job;
}

#if __CUDA_ARCH__ >= 900

// The sum over `lanes` neighbours, the same in all of them.
template <int kLanes>
__device__ __forceinline__ float lanes_sum(float v) {
#pragma unroll
  for (int i = 1; i < kLanes; i *= 2) v += __shfl_xor_sync(0xffffffffu, v, i);
  return v;
}

// The scales of rows `row` and row + 8, as the fragments of wgmma have them, by the four lanes of a
// quad. Rows beyond the last get its scale. They are asked for before they are needed, so that
// nobody waits for the parts, unless there are more of them than most models have.
class ScalesOfRows {
 public:
  __device__ __forceinline__ void ask(const RowScales& of, int row) {
    if (of.squares == nullptr) return;
    first_ = of.squares + std::int64_t{min(row, of.rows - 1)} * of.parts;
    second_ = of.squares + std::int64_t{min(row + 8, of.rows - 1)} * of.parts;
#pragma unroll
    for (int i = 0; i < kAsked; ++i) asked_[i] = part(of, i);
  }
  __device__ __forceinline__ float2 get(const RowScales& of) const {
    if (of.squares == nullptr) return make_float2(1, 1);
    float2 sums = asked_[0];
    const auto add = [&](float2 v) { sums.x += v.x, sums.y += v.y; };
#pragma unroll
    for (int i = 1; i < kAsked; ++i) add(asked_[i]);
    for (int i = kAsked; i * 4 < of.parts; ++i) add(part(of, i));
    return make_float2(rsqrtf(fmaf(lanes_sum<4>(sums.x), of.of_mean, of.eps)),
                       rsqrtf(fmaf(lanes_sum<4>(sums.y), of.of_mean, of.eps)));
  }

 private:
  static constexpr int kAsked = 2;
  const float *first_, *second_;
  float2 asked_[kAsked];

  __device__ __forceinline__ float2 part(const RowScales& of, int i) const {
    const int at = 4 * i + static_cast<int>(threadIdx.x) % 4;
    return at < of.parts ? make_float2(first_[at], second_[at]) : make_float2(0, 0);
  }
};

#endif

}  // namespace
}  // namespace mamba3
