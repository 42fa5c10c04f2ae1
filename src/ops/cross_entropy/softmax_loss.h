// The loss of one row of logits, which become their gradient. One thread.
#pragma once

#include <cstdint>

namespace mamba3 {

struct SoftmaxLossArgs {
  float* logits = nullptr;  // [v]
  std::int64_t v = 0;       // at least 1
  std::int64_t target = 0;
  double z_weight = 0;
  double grad_scale = 1;
  bool gradient = true;  // overwrite the logits by the gradient; otherwise they stay
};

struct SoftmaxLoss {
  double loss = 0;
  double z = 0;
  bool correct = false;
};

// A NaN, or an infinity that leaves no other answer, gives NaN everywhere.
SoftmaxLoss softmax_loss(const SoftmaxLossArgs& args);

}  // namespace mamba3
