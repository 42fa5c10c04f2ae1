// Checkpoints of trainings that are kept, and those that cannot be written.
#include <signal.h>
#include <sys/resource.h>
#include <cmath>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <optional>

#include "training_run_case.h"

namespace mamba3 {
namespace {

TEST_F(TrainingRunTest, TheLastCheckpointsAreKept) {
  const TrainRecord record = small_record();
  // What killed ones left.
  fs::create_directories(folder_ / "run" / "checkpoints" / "step-3.tmp");
  write_text(folder_ / "run" / "model.safetensors.123-4.tmp", "half");
  run(record, "run");
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder_ / "run" / "checkpoints")) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"step-10", "step-15", "step-20"}));
  EXPECT_FALSE(fs::exists(folder_ / "run" / "model.safetensors.123-4.tmp"));
}

TEST_F(TrainingRunTest, ACheckpointThatCannotBeWrittenIsTriedAgain) {
  const TrainRecord record = small_record();
  write_text(run_folder("run") / "checkpoints", "a file where the folder should be");
  Context ctx = context();
  Trainer trainer = fresh(record, ctx);
  std::vector<std::int64_t> saved;
  RunHooks hooks;
  hooks.on_step = [&](const StepReport& report, double) {
    if (report.step == 7) fs::remove(folder_ / "run" / "checkpoints");
  };
  hooks.on_save = [&](std::int64_t step, const fs::path&) { saved.push_back(step); };
  TrainingRun(folder_ / "run", record, trainer, nullptr, hooks, ctx).run();
  EXPECT_EQ(saved, (std::vector<std::int64_t>{7, 10, 15, 20}));
  EXPECT_NE(warnings_.find("step 5 was not saved"), std::string::npos) << warnings_;
}

TEST_F(TrainingRunTest, TheLastSaveIsTriedUntilThereIsRoom) {
  TrainRecord record = small_record();
  record.rhythm.save_every = 100;
  int waited = 0;
  RunHooks hooks;
  std::vector<std::int64_t> saved;
  hooks.on_save = [&](std::int64_t step, const fs::path&) { saved.push_back(step); };
  const auto run_with = [&](const std::string& name) {
    Context ctx = context();
    Trainer trainer = fresh(record, ctx);
    TrainingRun(run_folder(name), record, trainer, nullptr, hooks, ctx).run();
  };
  // First the checkpoint cannot be written, then the model.
  const fs::path run = run_folder("run");
  write_text(run / "checkpoints", "a file where the folder should be");
  hooks.wait = [&] {
    if (++waited == 2) {
      fs::remove(run / "checkpoints");
      fs::create_directory(run / "model.safetensors");
    }
    if (waited == 4) fs::remove(run / "model.safetensors");
  };
  run_with("run");
  EXPECT_EQ(waited, 4);
  EXPECT_EQ(saved, std::vector<std::int64_t>{20});
  EXPECT_TRUE(fs::is_regular_file(run / "model.safetensors"));
  EXPECT_TRUE(fs::exists(run / "checkpoints" / "step-20" / "training.json"));
  EXPECT_NE(warnings_.find("the last step was not saved"), std::string::npos) << warnings_;

  hooks.wait = nullptr;
  write_text(run_folder("never") / "checkpoints", "");
  EXPECT_NE(error_of([&] { run_with("never"); }), "");
  hooks.wait = [] { throw Error(ErrorCode::kInterrupted, "interrupted"); };
  EXPECT_NE(error_of([&] { run_with("never"); }), "");
}

// As on a full disk: while it lives, no file may become larger.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::uintmax_t bytes) {
    EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{bytes, before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  }
  ~FileSizeLimit() {
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &before_), 0);
    ::signal(SIGXFSZ, SIG_DFL);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

TEST_F(TrainingRunTest, AFailedCheckpointLeavesNothing) {
  const TrainRecord record = small_record();
  Context ctx = context();
  Trainer trainer = fresh(record, ctx);
  write_model(run_folder("run"), trainer);
  const FileSizeLimit limit(fs::file_size(folder_ / "run" / "model.safetensors"));
  expect_error("optimizer.safetensors",
               [&] { write_train_checkpoint(folder_ / "run", record, trainer); });
  EXPECT_TRUE(fs::is_empty(folder_ / "run" / "checkpoints"));
}

TEST_F(TrainingRunTest, AnInterruptedOneThatCannotBeSavedSaysWhatIsLost) {
  const TrainRecord record = small_record();
  Context ctx = context();
  std::string good =
      "; the last good checkpoint is \"" + (folder_ / "run/checkpoints/step-5").string();
  std::optional<FileSizeLimit> limit;
  const auto interrupted = [&](std::int64_t full_at) {
    fs::remove_all(folder_ / "run");
    Trainer trainer = fresh(record, ctx);
    RunHooks hooks;
    hooks.poll = [&] {
      if (trainer.steps() == full_at) limit.emplace(4000);
      if (trainer.steps() == 8) throw Error(ErrorCode::kInterrupted, "interrupted");
    };
    const std::string message = error_of(
        [&] { TrainingRun(run_folder("run"), record, trainer, nullptr, hooks, ctx).run(); });
    limit.reset();
    return message;
  };
  const std::string lost = interrupted(6);
  EXPECT_TRUE(lost.starts_with("steps 6 to 8 could not be saved and are lost: cannot write"))
      << lost;
  EXPECT_NE(lost.find("File too large"), std::string::npos) << lost;
  EXPECT_NE(lost.find(good), std::string::npos) << lost;
  const std::string all = interrupted(0);
  EXPECT_TRUE(all.starts_with("steps 1 to 8 could not be saved and are lost: ")) << all;
  EXPECT_TRUE(all.ends_with("; nothing was saved since it began")) << all;

  // The checkpoint is whole, only the model beside it is of an earlier step.
  fs::create_directories(folder_ / "whole/model.safetensors");
  const std::string model = error_of([&] { run(record, "whole", 8); });
  EXPECT_TRUE(model.starts_with("the model after step 8 was not written: ")) << model;
  EXPECT_NE(model.find("checkpoints/step-8"), std::string::npos) << model;
}

TEST_F(TrainingRunTest, ARecordTakesNamesThatAreNoUtf8) {
  TrainRecord record = small_record();
  record.data.files = {"a.txt", "\xff.txt"};
  record.data.held_out = {"\xc3"};
  record.command = "mamba3 train --data \xff.txt";
  Context ctx = context();
  const Trainer trainer = fresh(record, ctx);
  const fs::path folder = write_train_checkpoint(run_folder("run"), record, trainer);
  const TrainRecord read = read_train_checkpoint(folder).record;
  EXPECT_EQ(read.data.files, record.data.files);
  EXPECT_EQ(read.data.held_out, record.data.held_out);
  EXPECT_EQ(read.command, "mamba3 train --data \xef\xbf\xbd.txt");
}

// What was saved behind the step that did it is not what a training goes on from.
TEST_F(TrainingRunTest, AfterDivergenceTheCheckpointBeforeItIsTheNewest) {
  TrainRecord record = small_record();
  record.rhythm = {100, 3, 1, 1};
  record.options.schedule.steps = 5;
  ASSERT_EQ(error_of([&] { run(record, "run"); }), "");
  const fs::path checkpoints = folder_ / "run/checkpoints";
  const std::string good = read_text(checkpoints / "step-5/model.safetensors");
  record.options.schedule = {.peak = 900, .steps = 9, .warmup_steps = 0};
  const std::string message = error_of([&] { run(record, "run", 1000, true); });
  EXPECT_NE(message.find("training diverged: step 7"), std::string::npos) << message;
  EXPECT_NE(message.find("the last good checkpoint is \"" + (checkpoints / "step-5").string()),
            std::string::npos)
      << message;
  EXPECT_TRUE(fs::exists(checkpoints / "step-6.damaged"));
  EXPECT_TRUE(read_text(folder_ / "run/model.safetensors") == good);
  Context ctx = context();
  EXPECT_EQ(newest_train_checkpoint(folder_ / "run", ctx).record.step, 5);
}

TEST_F(TrainingRunTest, AsManyCheckpointsAsAskedForAreLeft) {
  TrainRecord record = small_record();
  record.rhythm = {7, 3, 4, 1};
  run(record, "run");
  const auto left = std::distance(fs::directory_iterator(folder_ / "run/checkpoints"), {});
  EXPECT_EQ(left, 1);
}

TEST_F(TrainingRunTest, WeightsThatAreNoNumbersAreNotSaved) {
  const TrainRecord record = small_record();
  Context ctx = context();
  Trainer trainer = fresh(record, ctx);
  auto tensors = init_tensors(config_, DType::kF32, 5, ctx);
  std::vector<float> bad(static_cast<std::size_t>(config_.width), NAN);
  tensors.tensors.at("backbone.norm_f.weight").data = reinterpret_cast<std::byte*>(bad.data());
  trainer.assign(tensors.tensors);
  expect_error("backbone.norm_f.weight holds NaN",
               [&] { write_train_checkpoint(run_folder("run"), record, trainer); });
  EXPECT_TRUE(fs::is_empty(folder_ / "run" / "checkpoints"));
  expect_error("training diverged: step 1", [&] {
    TrainingRun(run_folder("run"), record, trainer, held_out(record), {}, ctx).run();
  });
}

TEST_F(TrainingRunTest, HeldOutTextsThatGiveNoNumberAreDivergence) {
  TrainRecord record = small_record();
  record.options.schedule = {.peak = 1e3, .steps = 1, .warmup_steps = 0};
  record.options.optimizer.decay = 1e3;
  record.rhythm.eval_every = 1;
  expect_error("training diverged: after step 1", [&] { run(record, "run"); });
}

TEST_F(TrainingRunTest, FiguresThatFoundNoRoomAreWrittenLater) {
  const fs::path path = folder_ / "metrics.jsonl";
  MetricsFile file(path, 0);
  const auto line = [](int step) {
    return nlohmann::ordered_json{{"step", step}, {"loss", 2.5}, {"tokens", 7}};
  };
  EXPECT_TRUE(file.write(line(1)));
  {
    const FileSizeLimit limit(fs::file_size(path) + 9);  // in the middle of a line
    EXPECT_FALSE(file.write(line(2)));
    EXPECT_FALSE(file.write(line(3)));
  }
  EXPECT_TRUE(file.write(line(4)));
  std::string expected;
  for (const int step : {1, 2, 3, 4}) expected += line(step).dump() + "\n";
  EXPECT_EQ(read_text(path), expected);
}

TEST_F(TrainingRunTest, OneThatHasEndedIsAskedForOtherTexts) {
  TrainRecord record = small_record();
  const RunResult first = run(record, "run");
  const std::string figures = read_text(folder_ / "run/metrics.jsonl");
  EXPECT_EQ(run(record, "run", 1000, true).held_out->loss, first.held_out->loss);
  EXPECT_EQ(read_text(folder_ / "run/metrics.jsonl"), figures);
  record.rhythm.eval_blocks = 1;
  EXPECT_NE(run(record, "run", 1000, true).held_out->loss, first.held_out->loss);
}

}  // namespace
}  // namespace mamba3
