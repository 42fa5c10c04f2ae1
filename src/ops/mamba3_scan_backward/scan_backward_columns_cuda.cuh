// The columns that mamba3_scan_backward reads and whose gradients it writes, in fp32 or bf16.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

namespace mamba3 {

// Rows of numbers, one of the pointers null.
struct InputColumn {
  const float* fp32;
  const __nv_bfloat16* bf16;
  std::int64_t stride;

  __device__ __forceinline__ float at(std::int64_t token, std::int64_t j) const {
    const std::int64_t i = token * stride + j;
    return bf16 != nullptr ? __bfloat162float(__ldg(bf16 + i)) : __ldg(fp32 + i);
  }
};

struct GradientColumn {
  float* fp32;
  __nv_bfloat16* bf16;
  std::int64_t stride;

  __device__ __forceinline__ void put(std::int64_t token, std::int64_t j, float value) const {
    const std::int64_t i = token * stride + j;
    if (bf16 != nullptr) {
      bf16[i] = __float2bfloat16_rn(value);
    } else {
      fp32[i] = value;
    }
  }
};

struct GradientColumns {
  GradientColumn z, x, in_b, out_c, dt_raw, decay_raw, trap_raw, angle_raw;
};

inline InputColumn input_column(const float* fp32, std::int64_t stride, const Bf16* bf16,
                                std::int64_t bf16_stride) {
  const bool narrow = bf16 != nullptr;
  return {fp32, reinterpret_cast<const __nv_bfloat16*>(bf16), narrow ? bf16_stride : stride};
}
inline InputColumn input_z(const Mamba3Columns& in) {
  return input_column(in.z, in.row_stride, in.z_bf16, in.zx_stride);
}
inline InputColumn input_x(const Mamba3Columns& in) {
  return input_column(in.x, in.row_stride, in.x_bf16, in.zx_stride);
}
inline InputColumn input_rows(const ConstMatrix& rows) {
  if (rows.is_bf16()) {
    return input_column(nullptr, 0, static_cast<const Bf16*>(rows.data), rows.stride[0]);
  }
  return input_column(rows.floats(), rows.stride[0], nullptr, 0);
}

// [t, e] in bf16 is cut in in_proj's order: z, x, B, C, dt, A, trap, angle.
inline GradientColumns gradient_columns(const Mamba3Dims& dims,
                                        const Mamba3ColumnGradients& grads) {
  auto* next = reinterpret_cast<__nv_bfloat16*>(grads.rows_bf16);
  const auto take = [&](float* fp32, std::int64_t width) {
    const GradientColumn column{fp32, next, grads.row_stride};
    if (next != nullptr) next += width;
    return column;
  };
  const std::int64_t inner = dims.heads * dims.head_dim;
  const std::int64_t shared = dims.rank * dims.groups * dims.state;
  GradientColumns out{};
  out.z = take(grads.z, inner);
  out.x = take(grads.x, inner);
  out.in_b = take(grads.in_b, shared);
  out.out_c = take(grads.out_c, shared);
  out.dt_raw = take(grads.dt_raw, dims.heads);
  out.decay_raw = take(grads.decay_raw, dims.heads);
  out.trap_raw = take(grads.trap_raw, dims.heads);
  out.angle_raw = take(grads.angle_raw, dims.angle_columns());
  return out;
}

}  // namespace mamba3
