// Some rows of a weight matrix, rewritten as the GEMM reads them fastest. One thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mamba3/tensor.h"

namespace mamba3 {

struct PackArgs {
  const std::byte* w = nullptr;  // [outs, k] bf16 or f32
  DType dtype = DType::kF32;
  std::int64_t outs = 0;
  std::int64_t k = 0;
  std::int64_t stride = 0;  // from row to row, in elements
};

// out [outs, stride]: bf16, zeros from k on; f32 weights are rounded.
void pack_bf16(const PackArgs& args, Bf16* out, std::int64_t stride);

// out [panels, k, kGemmPanel]: f32, transposed; `rounded`: through bf16. What fills up the last
// panel stays as it is.
void pack_f32_panels(const PackArgs& args, bool rounded, float* out);

// out [k, out_stride], its first `outs` columns: f32, transposed.
void transpose_f32(const PackArgs& args, bool rounded, float* out, std::int64_t out_stride);

}  // namespace mamba3
