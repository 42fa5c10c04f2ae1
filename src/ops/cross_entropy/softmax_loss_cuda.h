// The losses of rows of logits on a GPU; the logits become their gradient.
#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "mamba3/context.h"

namespace mamba3 {

// Of one row; zeros of one that takes no part.
struct RowLoss {
  double loss = 0;
  double z = 0;
  std::int32_t correct = 0;
  std::int32_t counted = 0;  // whether it takes part
};

enum class LogitGradient : std::uint8_t { kNone, kF32, kBf16 };

struct SoftmaxLossRowsArgs {
  float* logits = nullptr;  // [rows, v], on 16 bytes
  std::int64_t rows = 0;
  std::int64_t v = 0;
  std::int64_t stride = 0;                // a multiple of 8, v at least
  const std::int32_t* targets = nullptr;  // [rows], see CrossEntropyArgs
  double z_weight = 0;
  double grad_scale = 1;
  LogitGradient gradient = LogitGradient::kNone;
  RowLoss* losses = nullptr;       // [rows], assigned
  double* plain_losses = nullptr;  // [rows], assigned; null: not wanted
};

// The gradient [rows, v] lies in the memory of the logits: kF32 where they were, kBf16 in the upper
// half of each row. A NaN among a row's logits, an infinity that leaves no other answer, or a
// target out of range gives NaN throughout the row.
void softmax_loss_rows_cuda(const SoftmaxLossRowsArgs& args, Context& ctx);

// Where it lies.
ConstMatrix logit_gradient(const SoftmaxLossRowsArgs& args);

}  // namespace mamba3
