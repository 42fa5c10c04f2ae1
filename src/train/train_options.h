// All that decides what a training computes, beside the model and the data.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/loss_and_gradients.h"
#include "train/optimizer.h"
#include "train/schedule.h"

namespace mamba3 {

struct TrainOptions {
  std::int64_t batch = 128;   // windows of a step
  std::int64_t length = 512;  // tokens of a window that are read, and as many that are predicted
  // Windows of a step are read in micro-batches of at most so many tokens, whose gradients add up:
  // the memory that a step takes. Sums of other micro-batches round otherwise.
  std::int64_t accumulate = 4096;
  Schedule schedule;
  OptimizerOptions optimizer;
  double z_loss = 0;
  Compute compute = Compute::kF32;         // kBf16: matrices and what they multiply are rounded
  Recompute recompute = Recompute::kNone;  // changes memory and time, no bit
  // Window i of a step goes on with the states that window i of the step before has ended with.
  bool carry_states = false;
  std::uint64_t seed = 0;  // of the first weights and of the order of windows

  std::int64_t tokens_per_step() const { return batch * length; }
};

// Those of a pass; grad_scale is the step's.
LossOptions loss_options(const TrainOptions& options);

// Refuses options that mean nothing, naming them.
void check_train_options(const TrainOptions& options);

// As a checkpoint keeps them, each under the name of its option; every bit of a number comes back.
nlohmann::ordered_json to_json(const TrainOptions& options);
TrainOptions train_options_from(const nlohmann::json& json);

// "none", "scan", "block". An unknown name is refused.
Recompute recompute_named(const std::string& name);

// "batch 4, was 8": one for each that differs.
std::vector<std::string> changes(const TrainOptions& before, const TrainOptions& now);

}  // namespace mamba3
