// One forward and backward pass of a whole model.
#pragma once

#include <cstdint>
#include <span>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "model/weights.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/linear/linear.h"
#include "train/lane_states.h"
#include "train/parameter_values.h"
#include "train/pass_memory.h"

namespace mamba3 {

// In the host's memory, where it stays until the pass has been waited for.
struct TrainingBatch {
  std::span<const std::int32_t> ids;         // [t], the sequences one after the other
  std::span<const std::int32_t> targets;     // [t], what follows each; or kIgnoredTarget
  std::span<const std::int64_t> cu_seqlens;  // [q + 1]

  // Without lanes each sequence starts from a fresh state. With them some go on from where a lane
  // was, and some leave their last states to a lane. No gradient passes from one to the other.
  LaneStates* lanes = nullptr;  // before() is read, after() is written
  // [q], the row of before() that a sequence starts from; [m], the sequences that lanes first_lane
  // and so on end with.
  std::span<const std::int64_t> starts = {}, ends = {};
  std::int64_t first_lane = 0;
};

struct LossOptions {
  Compute compute = Compute::kF32;  // kBf16: linears take their inputs rounded
  double z_weight = 0;
  Recompute recompute = Recompute::kNone;
  double grad_scale = 1;  // of the sum over tokens: 1 / their number gives the mean's gradient
  bool accumulate_gradients = true;  // without, they are assigned: the first of several batches
};

// Weights, gradients and `sums` lie in the memory of the Context's device; on a GPU the call
// returns before they are computed. Adds to `gradients` or assigns them, assigns `sums`. The same
// bits for any number of threads, and on a GPU in every run. A batch whose ids, targets, bounds or
// lanes make no sense is refused, and nothing has then happened.
//
// With Compute::kBf16 on a GPU that scans such layers on tensor cores, what passes between ops is
// rounded to bf16, but for the residual stream and the columns B, C, dt, A, trap and angle.
void loss_and_gradients(const ModelConfig& config, const ModelWeights& weights,
                        const TrainingBatch& batch, const LossOptions& options,
                        ParameterValues& gradients, CrossEntropySums* sums, Context& ctx);

// The loss alone, and the states that lanes are left in; of `options` grad_scale and recompute are
// not read.
void loss_of(const ModelConfig& config, const ModelWeights& weights, const TrainingBatch& batch,
             const LossOptions& options, CrossEntropySums* sums, Context& ctx);

// What a pass over so many tokens and sequences takes.
PassShape pass_shape(const ModelConfig& config, std::int64_t tokens, std::int64_t sequences,
                     const LossOptions& options, bool gradients, const Context& ctx);

}  // namespace mamba3
