// What the tests of trainings share: small ones on a small text, from their beginning and
// continued.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "byte_tokens.h"
#include "model/init.h"
#include "model/tiny_models.h"
#include "train/lane_source.h"
#include "train/training_run.h"
#include "train/window_source.h"

namespace mamba3 {

namespace fs = std::filesystem;

inline TrainRecord small_record() {
  TrainRecord record;
  record.options.batch = 4;
  record.options.length = 24;
  record.options.accumulate = 48;
  record.options.schedule.steps = 20;
  record.options.schedule.warmup_steps = 2;
  record.options.schedule.peak = 1e-2;
  record.rhythm = {7, 3, 5, 3};
  return record;
}

// Six lanes, two a micro-batch, that are through their data after 15 steps.
inline TrainRecord carrying_record() {
  TrainRecord record = small_record();
  record.options.carry_states = true;
  record.options.batch = 6;
  return record;
}

class TrainingRunTest : public ::testing::Test {
 protected:
  TrainingRunTest() {
    std::string text;
    for (int i = 1; i <= 60; ++i) {
      text += "The old man looked at the sea again. ";
      if (i % 7 == 0) text += "\n<|endoftext|>\n";
    }
    cache_of_text(folder_, text);
    config_ = tiny_models()[0].config;
    config_.vocab = 257;
  }

  Context context(int threads = 1) {
    ContextOptions options;
    options.threads = threads;
    options.device = device_;
    options.log = [this](LogLevel level, const std::string& line) {
      if (level == LogLevel::kWarning) warnings_ += line + "\n";
    };
    return Context(std::move(options));
  }
  WindowReader windows(const TrainRecord& record) const {
    return {TokenCache::open(folder_ / "cache", 1), record.options.length, "text.txt"};
  }
  std::shared_ptr<const BatchSource> data(const TrainRecord& record) const {
    if (record.options.carry_states) {
      return std::make_shared<LaneSource>(windows(record), record.options.batch);
    }
    return std::make_shared<WindowSource>(windows(record), record.options.seed);
  }
  std::shared_ptr<const BatchSource> held_out(const TrainRecord& record) const {
    return std::make_shared<WindowSource>(windows(record));
  }
  Trainer fresh(const TrainRecord& record, Context& ctx) const {
    Trainer trainer(config_, record.options, data(record), ctx);
    trainer.assign(init_tensors(config_, DType::kF32, 5, ctx).tensors);
    return trainer;
  }
  fs::path run_folder(const std::string& name) const {
    fs::create_directories(folder_ / name);
    return folder_ / name;
  }
  // From the beginning or from the newest checkpoint, until the end or, interrupted, `until`.
  RunResult run(const TrainRecord& record, const std::string& name, std::int64_t until = 1000,
                bool resumed = false) {
    Context ctx = context();
    Trainer trainer = fresh(record, ctx);
    if (resumed) {
      const TrainCheckpoint checkpoint = newest_train_checkpoint(run_folder(name), ctx);
      set_aside_later(run_folder(name), checkpoint.record.step);
      restore(checkpoint, trainer);
    }
    RunHooks hooks;
    hooks.poll = [&] {
      if (trainer.steps() >= until) throw Error(ErrorCode::kInterrupted, "interrupted");
    };
    return TrainingRun(run_folder(name), record, trainer, held_out(record), hooks, ctx).run();
  }
  void expect_same_checkpoint(const std::string& a, const std::string& b) const {
    const fs::path at = fs::path("checkpoints") / "step-20";
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(folder_ / a / at)) {
      files.push_back(entry.path().filename());
    }
    EXPECT_GE(files.size(), 4u);
    for (const fs::path& file : files) {
      const std::string bytes = read_text(folder_ / a / at / file);
      EXPECT_FALSE(bytes.empty()) << file;
      EXPECT_TRUE(bytes == read_text(folder_ / b / at / file)) << file;
    }
  }

  TempFolder folder_;
  ModelConfig config_;
  Device device_;
  std::string warnings_;
};

}  // namespace mamba3
