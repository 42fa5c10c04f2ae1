// What `train` is asked for, and where a training begins.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/common.h"
#include "cli/train_sweep.h"
#include "cli/train_task.h"
#include "io/folder_lock.h"
#include "train/batch_source.h"
#include "train/train_checkpoint.h"
#include "train/training_run.h"

namespace mamba3::cli {

// What is not given is as in the checkpoint that is resumed, else as TrainRecord has it.
struct TrainCommand {
  CommonOptions common;
  std::string run, report, output, preset, config, resume, init_from, cache;
  std::vector<std::string> data, held_out;
  std::optional<std::string> separator, json_key, schedule, recompute;
  std::optional<std::int64_t> steps, batch, length, accumulate, warmup;
  bool carry_states = false;
  std::optional<double> valid_split;
  std::optional<double> rate, final_rate, decay_from, decay, clip, beta1, beta2, eps, z_loss;
  std::optional<std::int64_t> eval_every, eval_blocks, save_every, keep;
  TaskCommand task;
  SweepCommand sweep;
};

// Refuses options that contradict each other.
void check_command(const TrainCommand& command);
// Refuses a folder that holds a model or a training.
void check_free(const std::filesystem::path& folder);
// In what a new training computes unless --dtype says it.
Compute usual_compute(bool gpu);
// `record` with what the command line gives.
TrainRecord with_given(const TrainCommand& command, TrainRecord record);

struct TrainStart {
  std::filesystem::path folder;     // of the run
  std::optional<FolderLock> lock;   // of that folder, once it is there
  std::filesystem::path tokenizer;  // a file; empty for a task
  ModelConfig config;
  TrainRecord record;
  std::optional<TrainCheckpoint> checkpoint;        // that is resumed
  std::shared_ptr<const TensorFile> first_weights;  // of --init-from
};
// From scratch, from another model or from a checkpoint. Nothing is written.
TrainStart find_start(const TrainCommand& command, Context& ctx);

// What is read, and what is evaluated: null for nothing.
struct Sequences {
  std::shared_ptr<const BatchSource> training, held_out;
};
// Of texts, from caches of their tokens, which are made when they are not there or cannot be used.
// Records the fingerprint; refuses to go on with another one.
Sequences open_texts(const TrainCommand& command, TrainStart& start, const Tokenizer& tokenizer,
                     Context& ctx);

// From there to the last step.
using MakeHooks = std::function<RunHooks(const Trainer& trainer)>;
RunResult run_training(const TrainCommand& command, TrainStart& start, const MakeHooks& hooks,
                       Context& ctx);

}  // namespace mamba3::cli
