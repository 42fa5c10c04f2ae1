// One forward and backward pass of a whole model on a CPU.
#pragma once

#include <cstdint>
#include <span>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "model/weights.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/linear/linear.h"
#include "train/parameter_values.h"

namespace mamba3 {

struct TrainingBatch {
  std::span<const std::int32_t> ids;         // [t], the sequences one after the other
  std::span<const std::int32_t> targets;     // [t], what follows each; or kIgnoredTarget
  std::span<const std::int64_t> cu_seqlens;  // [q + 1]; each sequence starts from a fresh state
};

// What is computed again on the way back instead of being kept, of each token and layer; no bit
// changes. kNone: norms and gates alone, 2 d + e + h p + 2 f numbers are kept; kScan: the scans'
// outputs too, 2 d + e + 2 f are kept; kBlock: all but the residual stream, d are kept.
enum class Recompute : std::uint8_t { kNone, kScan, kBlock };

struct LossOptions {
  Compute compute = Compute::kF32;  // kBf16: linears take their inputs rounded
  double z_weight = 0;
  Recompute recompute = Recompute::kNone;
  double grad_scale = 1;  // of the sum over tokens: 1 / their number gives the mean's gradient
};

// Adds to `gradients`. The same bits for any number of threads.
CrossEntropySums loss_and_gradients(const ModelConfig& config, const ModelWeights& weights,
                                    const TrainingBatch& batch, const LossOptions& options,
                                    ParameterValues& gradients, Context& ctx);

// The loss alone; of `options` grad_scale and recompute are not read.
CrossEntropySums loss_of(const ModelConfig& config, const ModelWeights& weights,
                         const TrainingBatch& batch, const LossOptions& options, Context& ctx);

}  // namespace mamba3
