// What a training is continued from: RUN/checkpoints/step-N/ (docs/FORMATS.md). A folder appears
// there when it is complete.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/document_reader.h"
#include "io/tensor_file.h"
#include "train/task_source.h"
#include "train/trainer.h"

namespace mamba3 {

struct TrainData {
  std::vector<std::string> files, held_out;
  DocumentFormat format;
  double held_out_share = 0;      // of the documents of `files`, as hold_out() takes it; 0: none
  std::uint64_t fingerprint = 0;  // of files, format, tokenizer and what is held out
};

// When a run does what beside its steps.
struct Rhythm {
  std::int64_t eval_every = 500;
  std::int64_t eval_blocks = 512;  // sequences
  std::int64_t save_every = 500;
  std::int64_t keep = 2;  // checkpoints
};
void check_rhythm(const Rhythm& rhythm);

struct TrainRecord {
  std::int64_t step = 0;
  std::int64_t position = 0;  // sequences read since the beginning
  TrainOptions options;
  TrainData data;  // nothing where there is a task
  std::optional<TaskOptions> task;
  Rhythm rhythm;
  std::string version, command;  // that wrote it
};

struct TrainCheckpoint {
  std::filesystem::path folder;
  TrainRecord record;
  ModelConfig config;
  TensorFile weights, moments;
  TensorFile states;  // of lanes; empty where none are carried
};

// Writes RUN/checkpoints/step-N of the trainer's step and then removes all but the last
// rhythm.keep, and the one before it: nobody knows yet whether a step can be made from these
// weights. Of the record, step and position are the trainer's. Returns the folder. Throws
// DivergedError instead where weights are not finite.
std::filesystem::path write_train_checkpoint(const std::filesystem::path& run, TrainRecord record,
                                             const Trainer& trainer);
// Refuses one that is not complete or whose files are not those that were written.
TrainCheckpoint read_train_checkpoint(const std::filesystem::path& folder);
// The newest that can be read; those that cannot are warned about.
TrainCheckpoint newest_train_checkpoint(const std::filesystem::path& run, const Context& ctx);
// Of a training.json, which `origin` names in messages. Refuses what is none.
TrainRecord parse_train_record(std::string_view text, const std::string& origin);
// What the newest says of itself, whether its weights can be read or not.
std::optional<TrainRecord> newest_train_record(const std::filesystem::path& run);
// Removes what a killed training has left half-written in its folder: files and checkpoints.
void remove_left_over(const std::filesystem::path& run);
// Gives later ones, which could not be read, a name under which nothing looks for them.
void set_aside_later(const std::filesystem::path& run, std::int64_t step);
// Removes all but the last `keep`.
void remove_old_checkpoints(const std::filesystem::path& run, std::int64_t keep);
// Whether there is any, readable or not.
bool has_train_checkpoints(const std::filesystem::path& run);
// The folder of the one after `step` steps, readable or not; empty: there is none.
std::filesystem::path train_checkpoint_at(const std::filesystem::path& run, std::int64_t step);

// Weights, moments, carried states, step and position, bit for bit.
void restore(const TrainCheckpoint& checkpoint, Trainer& trainer);

// Writes the weights so far, in fp32, into the run's folder, which then is an ordinary model's.
void write_model(const std::filesystem::path& run, const Trainer& trainer);
// The same with those of a checkpoint.
void write_model(const std::filesystem::path& run, const std::filesystem::path& checkpoint);

}  // namespace mamba3
