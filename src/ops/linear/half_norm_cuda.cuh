// The halves of a norm that two products share (fused_linear.h): the one before it adds a warp's 16
// rows of a tile to the residual; the one behind it multiplies rows by their scales.
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

// As the fragments of wgmma have them: of rows `row` and row + 8, by the four lanes of a quad. Rows
// beyond the last get its scale.
__device__ __forceinline__ float2 scales_of_rows(const RowScales& of, int row) {
  if (of.squares == nullptr) return make_float2(1, 1);
  const float* const first = of.squares + std::int64_t{min(row, of.rows - 1)} * of.parts;
  const float* const second = of.squares + std::int64_t{min(row + 8, of.rows - 1)} * of.parts;
  float2 sums = make_float2(0, 0);
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x) % 4; i < of.parts; i += 4) {
    sums.x += first[i];
    sums.y += second[i];
  }
  return make_float2(rsqrtf(fmaf(lanes_sum<4>(sums.x), of.of_mean, of.eps)),
                     rsqrtf(fmaf(lanes_sum<4>(sums.y), of.of_mean, of.eps)));
}

// A thread's part of 16 rows of the residual, which go by in strips of 32 columns: four columns of
// rows lane / 8 + 4 i, so that a warp reads and writes whole lines. Two strips are always on their
// way from memory. Beyond the last row the last one is read, and nothing written.
struct ResidualRows {
  static constexpr int kRows = 4, kColumns = 4;
  static constexpr int kAhead = 2;
  static constexpr int kStripColumns = 32, kStrips = static_cast<int>(kNormPart) / kStripColumns;

  const float* from[kRows];
  const float* weight;
  float old[kAhead][kRows][kColumns], weights[kAhead][kColumns];
  float squares[kRows] = {};

  __device__ __forceinline__ void begin(const ResidualJob& job, int first_row, int out) {
    const int column = out + lane() % 8 * kColumns;
    weight = job.weight + column;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      from[i] =
          job.residual + std::int64_t{min(row(first_row, i), job.rows - 1)} * job.stride + column;
    }
#pragma unroll
    for (int strip = 0; strip < kAhead; ++strip) load(strip);
  }

  // The sums of a strip, for row i of the thread, join the residual. Strips come in order.
  __device__ __forceinline__ void add(const ResidualJob& job, int first_row, int out, int strip,
                                      int i, uint4 sums) {
    const float(&before)[kColumns] = old[strip % kAhead][i];
    float values[kColumns] = {
        before[0] + __uint_as_float(sums.x), before[1] + __uint_as_float(sums.y),
        before[2] + __uint_as_float(sums.z), before[3] + __uint_as_float(sums.w)};
    const bool exists = row(first_row, i) < job.rows;
    if (exists) store_vector<kColumns>(values, const_cast<float*>(from[i]) + strip * kStripColumns);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      squares[i] = fmaf(values[c], values[c], squares[i]);
      values[c] *= weights[strip % kAhead][c];
    }
    const std::int64_t at = row(first_row, i) * job.scaled_stride + out + strip * kStripColumns;
    if (exists) store_vector<kColumns>(values, job.scaled + at + lane() % 8 * kColumns);
  }

  __device__ __forceinline__ void next(int strip) {
    if (strip + kAhead < kStrips) load(strip + kAhead);
  }

  // After the last strip.
  __device__ __forceinline__ void put_squares(const ResidualJob& job, int first_row,
                                              int out) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float sum = lanes_sum<8>(squares[i]);
      if (lane() % 8 != 0 || row(first_row, i) >= job.rows) continue;
      job.squares[std::int64_t{row(first_row, i)} * job.parts + out / kNormPart] = sum;
    }
  }

  __device__ __forceinline__ static int lane() {
    return static_cast<int>(threadIdx.x) % kWarpLanes;
  }
  __device__ __forceinline__ static int row(int first, int i) {
    return first + lane() / 8 + 4 * i;
  }

 private:
  __device__ __forceinline__ void load(int strip) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      load_vector<kColumns>(from[i] + strip * kStripColumns, old[strip % kAhead][i]);
    }
    load_vector<kColumns>(weight + strip * kStripColumns, weights[strip % kAhead]);
  }
};

#endif

}  // namespace
}  // namespace mamba3
