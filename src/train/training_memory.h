// How much memory a training takes on a Context's device, and which micro-batches fit: known before
// it begins.
#pragma once

#include <cstdint>
#include <string>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "train/batch_source.h"
#include "train/train_options.h"

namespace mamba3 {

struct TrainingMemory {
  std::int64_t micro_batch = 0;       // tokens that are read at once, whole windows
  std::int64_t parameters_bytes = 0;  // weights, gradients, moments, rounded copies
  std::int64_t states_bytes = 0;      // that lanes carry
  std::int64_t pass_bytes = 0;        // at most: of a micro-batch on its way forward and back
  std::int64_t module_bytes = 0;      // on a GPU: kernels and libraries
  std::int64_t total_bytes() const {
    return parameters_bytes + states_bytes + pass_bytes + module_bytes;
  }
};

// Without data, each of the micro-batch's windows counts as one piece: data with lanes may have
// more, which is only known when they are there.
TrainingMemory training_memory_needed(const ModelConfig& config, const TrainOptions& options,
                                      const Context& ctx, const BatchSource* data = nullptr);
// "micro-batches of N tokens need X GB (...)"
std::string describe(const TrainingMemory& need);
// The largest options.accumulate, a multiple of the window's length and at most a step's tokens,
// that takes no more than `available_bytes`; 0: not even one window.
std::int64_t largest_accumulate(const ModelConfig& config, TrainOptions options,
                                std::int64_t available_bytes, const Context& ctx,
                                const BatchSource* data = nullptr);
// kUnavailable when the training does not fit: says what it needs, and what would fit.
void check_training_memory(const ModelConfig& config, const TrainOptions& options,
                           std::int64_t available_bytes, const Context& ctx,
                           const BatchSource* data = nullptr);
// What options.accumulate is where nobody says: 4096 on a CPU; on a GPU, which few tokens leave
// idle, as many as keep at most 12 GB of activations for the way back, from 4096 to 65536.
std::int64_t default_accumulate(const ModelConfig& config, const TrainOptions& options,
                                const Context& ctx);

}  // namespace mamba3
