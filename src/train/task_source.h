// A state-tracking task as what a training reads: a curriculum of stages, each with longer
// sequences than the one before.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "train/batch_source.h"
#include "train/state_tracking.h"

namespace mamba3 {

struct TaskOptions {
  Task task = Task::kParity;
  bool multiplication = true;
  std::int64_t min_length = 3;
  std::vector<std::int64_t> stages{40, 80, 120, 160};  // the longest sequence of each
  std::int64_t stage_steps = 10000;
  std::int64_t eval_length = 256;  // of every sequence of an evaluation

  std::int64_t steps() const { return stage_steps * static_cast<std::int64_t>(stages.size()); }
};

// Refuses options that mean nothing, naming them.
void check_task_options(const TaskOptions& options);
nlohmann::ordered_json to_json(const TaskOptions& options);
TaskOptions task_options_from(const nlohmann::json& json);

// The sequences of a training; after the last stage they stay as long as there.
std::shared_ptr<const BatchSource> training_sequences(const TaskOptions& options,
                                                      std::int64_t batch, std::uint64_t seed);
// The sequences of its evaluations: the same ones for every training, and none of them from one.
std::shared_ptr<const BatchSource> evaluation_sequences(const TaskOptions& options);

}  // namespace mamba3
