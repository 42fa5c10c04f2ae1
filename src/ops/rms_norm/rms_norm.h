// residual += hidden, or sum = residual + hidden; y = that / rms(that) * weight. All fp32 but
// perhaps y; the sum of squares is taken in double.
#pragma once

#include "core/matrix.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

struct RmsNormArgs {
  TensorView<float, 2> residual;  // [rows, d], read; overwritten when hidden is given and not sum
  TensorView<const float, 2> hidden;  // [rows, d] or data == nullptr: nothing is added
  const float* weight = nullptr;      // [d]
  float eps = 1e-5f;
  Matrix y;                       // [rows, d], may be the memory of hidden; bf16: on a GPU
  TensorView<float, 2> sum = {};  // [rows, d], with hidden only; or no data
};

void rms_norm(const RmsNormArgs& args, Context& ctx);

}  // namespace mamba3
