// Backward of rms_norm, where it stands in a model: the residual stream goes on past the norm, so
// its gradient is there already and the norm's part is added to it. With rms = sqrt(mean square +
// eps) and n = residual / rms:
//   grad_residual += (g - n mean(g n)) / rms, g = grad_y weight;   grad_weight += sum_rows grad_y n
// The gradient of `hidden`, which the forward pass added, is grad_residual too.
#pragma once

#include "core/matrix.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// Means are taken in double, all else is fp32. Sums over rows are made of pieces that depend on the
// shape alone, added in order: bits do not depend on the number of threads.
struct RmsNormBackwardArgs {
  TensorView<const float, 2> residual;  // [rows, d], what the norm read: hidden is added already
  const float* weight = nullptr;        // [d]
  float eps = 1e-5f;
  ConstMatrix grad_y;                  // [rows, d]  bf16: on a GPU
  TensorView<float, 2> grad_residual;  // [rows, d], added to
  float* grad_weight = nullptr;        // [d], added to; null: not wanted
  // [rows, d] bf16, assigned: the new grad_residual rounded, as the next products read it. On a
  // GPU; no data: not wanted.
  Matrix rounded = {};
};

std::size_t rms_norm_backward_workspace_bytes(const RmsNormBackwardArgs& args, const Context& ctx);
void rms_norm_backward(const RmsNormBackwardArgs& args, Context& ctx);

}  // namespace mamba3
