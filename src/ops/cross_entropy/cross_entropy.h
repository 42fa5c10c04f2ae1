// The head and the loss of a language model in one: logits = x w^T, the cross-entropy of their
// softmax with the targets, and its gradients. Logits exist for some of the rows at a time only.
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"
#include "ops/linear/linear.h"

namespace mamba3 {

// A row with this target takes no part: no loss, a gradient of zero, and its x reaches nothing.
constexpr std::int32_t kIgnoredTarget = -1;

// Over the rows that take part. With z the logarithm of the sum of e^logit:
struct CrossEntropySums {
  double loss = 0;           // of z - logit of the target, in nats
  double squared_z = 0;      // of z^2
  std::int64_t rows = 0;     // how many there are
  std::int64_t correct = 0;  // whose target has the largest logit, or shares it
};

// The gradients are those of grad_scale * sum over rows of (z - logit of the target + z_weight
// z^2). All rows of w take part in the softmax, those that pad the vocabulary as well. Logits are
// fp32, and products as linear and linear_backward make them. Bits do not depend on the number of
// threads.
//
// On a CPU softmax and loss are taken in double, and a target out of range is refused. On a GPU the
// exponentials are fp32 and their sums double; nobody can look at the targets beforehand, and one
// out of range makes its row's loss and gradient NaN. With kBf16 x and grad_x may be bf16 there,
// and the logits' gradient is rounded to bf16 once. targets, sums and losses lie in the GPU's
// memory.
struct CrossEntropyArgs {
  ConstMatrix x;                          // [t, d], normed
  TensorRef w;                            // [v, d] bf16 or f32
  std::span<const std::int32_t> targets;  // [t], each in [0, v) or kIgnoredTarget
  double z_weight = 0;
  double grad_scale = 1;
  CrossEntropySums* sums = nullptr;  // assigned
  double* losses = nullptr;          // [t], assigned, 0 where ignored; null: not wanted
  Matrix grad_x;                     // [t, d], assigned; no data: not wanted. Not the memory of x
  TensorView<float, 2> grad_w;       // [v, d], added to; no data: not wanted
  Compute compute = Compute::kF32;
  bool accumulate_w = true;  // without, grad_w is assigned: the first of several batches
};

std::size_t cross_entropy_workspace_bytes(const CrossEntropyArgs& args, const Context& ctx);
void cross_entropy(const CrossEntropyArgs& args, Context& ctx);

}  // namespace mamba3
