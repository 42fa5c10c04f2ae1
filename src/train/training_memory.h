// How much memory a training takes on a CPU, and which micro-batches fit: known before it begins.
#pragma once

#include <cstdint>

#include "mamba3/config.h"
#include "train/train_options.h"

namespace mamba3 {

struct TrainingMemory {
  std::int64_t micro_batch = 0;       // tokens that are read at once, whole windows
  std::int64_t parameters_bytes = 0;  // weights, gradients, moments, rounded copies
  std::int64_t pass_bytes = 0;        // at most: of a micro-batch on its way forward and back
  std::int64_t total_bytes() const { return parameters_bytes + pass_bytes; }
};

TrainingMemory training_memory_needed(const ModelConfig& config, const TrainOptions& options);
// The largest options.accumulate, a multiple of the window's length and at most a step's tokens,
// that takes no more than `available_bytes`; 0: not even one window.
std::int64_t largest_accumulate(const ModelConfig& config, TrainOptions options,
                                std::int64_t available_bytes);
// kUnavailable when the training does not fit: says what it needs, and what would fit.
void check_training_memory(const ModelConfig& config, const TrainOptions& options,
                           std::int64_t available_bytes);

}  // namespace mamba3
