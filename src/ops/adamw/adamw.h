// One step of AdamW on one tensor, in one pass over its memory. With g = grad grad_scale:
//   first += (1 - beta1) (g - first);   second = beta2 second + (1 - beta2) g^2
//   weights = weights (1 - rate decay) - rate m / (sqrt(s) + eps),
//     m = first / (1 - beta1^step),  s = second / (1 - beta2^step)
#pragma once

#include <cstdint>

#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// Numbers of the step are computed in double, elements in fp32. An element's bits depend on nothing
// but its own numbers.
struct AdamwArgs {
  std::int64_t count = 0;
  float* weights = nullptr;     // [count], the master copy
  const float* grad = nullptr;  // [count]
  float* first = nullptr;       // [count], the moments
  float* second = nullptr;      // [count]
  Bf16* rounded =
      nullptr;  // [count], assigned: the weights that the next pass computes with; null: not wanted
  std::int64_t step = 1;  // counted from 1
  double rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double decay = 0;       // 0 where there is none: dt_bias, D, norms, biases
  double grad_scale = 1;  // clipping, and the mean over accumulated batches
};

void adamw(const AdamwArgs& args, Context& ctx);

}  // namespace mamba3
