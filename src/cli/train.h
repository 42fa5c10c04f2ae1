// What `train` is asked for, and where a training begins.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/common.h"
#include "train/train_checkpoint.h"
#include "train/window_reader.h"

namespace mamba3::cli {

// What is not given is as in the checkpoint that is resumed, else as TrainRecord has it.
struct TrainCommand {
  CommonOptions common;
  std::string output, preset, config, resume, init_from, cache;
  std::vector<std::string> data, held_out;
  std::optional<std::string> separator, json_key, schedule, recompute;
  std::optional<std::int64_t> steps, batch, length, accumulate, warmup;
  std::optional<double> rate, final_rate, decay_from, decay, clip, beta1, beta2, z_loss;
  std::optional<std::int64_t> eval_every, eval_blocks, save_every, keep;
};

// Refuses options that contradict each other.
void check_command(const TrainCommand& command);
// `record` with what the command line gives.
TrainRecord with_given(const TrainCommand& command, TrainRecord record);

struct TrainStart {
  std::filesystem::path folder;     // of the run
  std::filesystem::path tokenizer;  // a file
  ModelConfig config;
  TrainRecord record;
  std::optional<TrainCheckpoint> checkpoint;        // that is resumed
  std::shared_ptr<const TensorFile> first_weights;  // of --init-from
};
// From scratch, from another model or from a checkpoint. Nothing is written.
TrainStart find_start(const TrainCommand& command, Context& ctx);

// The tokens of `files`, from their cache in `folder`, which is made when it is not there or cannot
// be used. Sets `fingerprint`.
std::shared_ptr<const TokenCache> open_tokens(const TrainCommand& command, const TrainStart& start,
                                              const std::vector<std::string>& files,
                                              const Tokenizer& tokenizer,
                                              std::uint64_t& fingerprint, Context& ctx);

}  // namespace mamba3::cli
