// train --task: options of the state-tracking tasks, and the models that learn them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "cli/cli11_forward.h"
#include "mamba3/config.h"
#include "train/train_checkpoint.h"

namespace mamba3::cli {

// What is not given is as in the checkpoint that is resumed, else as TaskOptions has it.
struct TaskCommand {
  std::string name;  // empty: no task, or that of the checkpoint
  std::string stages, rope;
  std::optional<bool> multiplication;
  std::optional<std::int64_t> stage_steps, min_length, eval_length;
  std::optional<std::int64_t> width, layers, head_dim, mlp;
};

void add_task_options(CLI::App& app, TaskCommand& command);

// A record to train a task with, before other options are given.
TrainRecord task_record(const TaskCommand& command, Compute compute);
// The options of the task that are given. Of a training on texts only that none is (kUsage).
void give_task(const TaskCommand& command, std::optional<TaskOptions>& task);
// `file` is a config.json whose vocabulary becomes the task's; empty: the paper's sizes.
ModelConfig task_model(const TaskCommand& command, const std::string& file);
// A tokenizer.json for the task's symbols, so that `generate -p "1+2*3="` can be asked.
void write_task_tokenizer(Task task, const std::filesystem::path& folder);

}  // namespace mamba3::cli
