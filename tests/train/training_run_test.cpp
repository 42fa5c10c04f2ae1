#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "train/run_report.h"
#include "training_run_case.h"

namespace mamba3 {
namespace {

TEST_F(TrainingRunTest, TheLossFallsOnARepeatedText) {
  for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
    TrainRecord record = small_record();
    record.options.compute = compute;
    record.options.schedule.steps = 60;
    const RunResult result = run(record, compute == Compute::kF32 ? "fp32" : "bf16");
    EXPECT_EQ(result.last.step, 60);
    EXPECT_LT(result.last.loss, 2.5);  // it begins at 5.5
    EXPECT_LT(result.held_out->loss, 2.5);
    EXPECT_EQ(result.tokens, 60 * 4 * 24);
  }
}

TEST_F(TrainingRunTest, WhatIsContinuedIsBitwiseWhatIsNot) {
  const TrainRecord record = small_record();
  run(record, "whole");
  EXPECT_NE(error_of([&] { run(record, "cut", 8); }), "");
  const RunResult rest = run(record, "cut", 1000, true);
  EXPECT_EQ(rest.tokens, 12 * 4 * 24);
  expect_same_checkpoint("whole", "cut");
  EXPECT_EQ(warnings_, "");
}

TEST_F(TrainingRunTest, CarriedStatesAreContinuedBitwise) {
  const TrainRecord record = carrying_record();
  run(record, "whole");
  EXPECT_TRUE(fs::exists(folder_ / "whole/checkpoints/step-20/states.safetensors"));
  for (const std::int64_t until : {8, 15, 16}) {  // the epoch's last step ends at 15
    fs::remove_all(folder_ / "cut");
    EXPECT_NE(error_of([&] { run(record, "cut", until); }), "");
    run(record, "cut", 1000, true);
    expect_same_checkpoint("whole", "cut");
  }
  EXPECT_EQ(warnings_, "");
}

// The same on a GPU. Skipped where there is none.
class CudaTrainingRunTest : public TrainingRunTest {
 protected:
  CudaTrainingRunTest() { device_.kind = DeviceKind::kCuda; }
  void SetUp() override {
    if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  }
};

TEST_F(CudaTrainingRunTest, TheLossFallsOnARepeatedText) {
  for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
    TrainRecord record = small_record();
    record.options.compute = compute;
    record.options.schedule.steps = 60;
    const RunResult result = run(record, compute == Compute::kF32 ? "fp32" : "bf16");
    EXPECT_LT(result.last.loss, 2.5);  // it begins at 5.5
    EXPECT_LT(result.held_out->loss, 2.5);
  }
}

TEST_F(CudaTrainingRunTest, WhatIsContinuedIsBitwiseWhatIsNot) {
  TrainRecord record = small_record();
  record.options.compute = Compute::kBf16;
  run(record, "whole");
  EXPECT_NE(error_of([&] { run(record, "cut", 8); }), "");
  run(record, "cut", 1000, true);
  expect_same_checkpoint("whole", "cut");
}

TEST_F(CudaTrainingRunTest, CarriedStatesAreContinuedBitwise) {
  for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
    TrainRecord record = carrying_record();
    record.options.compute = compute;
    for (const char* name : {"whole", "cut"}) fs::remove_all(folder_ / name);
    run(record, "whole");
    EXPECT_NE(error_of([&] { run(record, "cut", 8); }), "");
    run(record, "cut", 1000, true);
    expect_same_checkpoint("whole", "cut");
  }
}

TEST_F(CudaTrainingRunTest, CarryingLearnsAsOnACpu) {
  const TrainRecord record = carrying_record();
  const Device gpu = device_;
  const RunResult there = run(record, "gpu");
  device_ = {};
  EXPECT_NEAR(run(record, "cpu").last.loss, there.last.loss, 1e-2);
  device_ = gpu;
}

TEST_F(CudaTrainingRunTest, ATrainingGoesOnOnTheOtherDevice) {
  const TrainRecord record = small_record();
  const Device gpu = device_, cpu{};
  const RunResult whole = run(record, "whole");
  for (const auto& [first, then] : {std::pair(gpu, cpu), std::pair(cpu, gpu)}) {
    fs::remove_all(folder_ / "cut");
    device_ = first;
    EXPECT_NE(error_of([&] { run(record, "cut", 8); }), "");
    device_ = then;
    EXPECT_NEAR(run(record, "cut", 1000, true).last.loss, whole.last.loss, 1e-2);
  }
}

TEST_F(TrainingRunTest, ADamagedCheckpointIsPassedOver) {
  const TrainRecord record = carrying_record();
  run(record, "whole");
  const std::pair<std::string, std::string> damages[] = {{"cut short", "optimizer.safetensors"},
                                                         {"one bit", "optimizer.safetensors"},
                                                         {"removed", "optimizer.safetensors"},
                                                         {"removed", "training.json"},
                                                         {"cut short", "states.safetensors"},
                                                         {"one bit", "states.safetensors"},
                                                         {"removed", "states.safetensors"},
                                                         {"a digit", "training.json"},
                                                         {"a digit", "config.json"}};
  for (const auto& [damage, file] : damages) {
    SCOPED_TRACE(damage + " " + file);
    warnings_.clear();
    fs::remove_all(folder_ / "cut");
    EXPECT_NE(error_of([&] { run(record, "cut", 11); }), "");
    const fs::path damaged = folder_ / "cut/checkpoints/step-11" / file;
    std::string bytes = read_text(damaged);
    if (damage == "cut short") bytes.resize(bytes.size() / 2);
    if (damage == "one bit") bytes[bytes.size() / 2] ^= 1;
    if (damage == "a digit") bytes.replace(bytes.find("0.0"), 3, "0.1");
    write_text(damaged, bytes);
    if (damage == "removed") fs::remove(damaged);
    EXPECT_EQ(run(record, "cut", 1000, true).tokens, 10 * 6 * 24);
    EXPECT_NE(warnings_.find("step-11"), std::string::npos);
    expect_same_checkpoint("whole", "cut");
    EXPECT_TRUE(fs::exists(folder_ / "cut" / "checkpoints" / "step-11.damaged"));
  }
  fs::remove_all(folder_ / "cut" / "checkpoints");
  EXPECT_NE(error_of([&] { run(record, "cut", 1000, true); }).find("holds no checkpoint"),
            std::string::npos);
}

// What another source reads, each window from fresh states.
class Uncarried : public BatchSource {
 public:
  explicit Uncarried(std::shared_ptr<const BatchSource> source) : source_(std::move(source)) {}
  SequenceBatch read(std::int64_t position, std::int64_t count) const override {
    SequenceBatch batch = source_->read(position, count);
    batch.starts.clear();
    batch.ends.clear();
    batch.first_lane = 0;
    return batch;
  }
  std::int64_t sequences() const override { return source_->sequences(); }
  std::int64_t sequences_in(std::int64_t position, std::int64_t tokens) const override {
    return source_->sequences_in(position, tokens);
  }
  std::int64_t targets_each() const override { return source_->targets_each(); }
  std::string names(std::int64_t, std::int64_t) const override { return {}; }

 private:
  std::shared_ptr<const BatchSource> source_;
};

// Documents that are as long as windows have nothing to carry; half as long ones even less.
TEST_F(TrainingRunTest, CarryingChangesABitOnlyInsideADocument) {
  for (const auto& [words, same] : {std::pair(1, true), std::pair(2, true), std::pair(3, false)}) {
    std::string text;
    for (int i = 0; i < 150; ++i) {
      for (int j = 0; j < words; ++j) text += "word" + std::to_string(i * words + j + 1000) + " ..";
      text += "\n<|endoftext|>\n";
    }
    cache_of_text(folder_, text);
    TrainRecord record = carrying_record();
    record.options.length = words == 1 ? 24 : 23;
    Context ctx = context();
    Trainer carrying = fresh(record, ctx);
    const auto source = std::make_shared<Uncarried>(data(record));
    record.options.carry_states = false;
    Trainer other(config_, record.options, source, ctx);
    other.assign(init_tensors(config_, DType::kF32, 5, ctx).tensors);
    EXPECT_EQ(carrying.step().loss, other.step().loss);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(carrying.step().loss == other.step().loss, same) << words;
  }
}

// The next attempt goes on from the states that the first has found.
TEST_F(TrainingRunTest, AnInterruptedStepHasCarriedNothing) {
  const TrainRecord record = carrying_record();
  Context ctx = context();
  Trainer one = fresh(record, ctx), two = fresh(record, ctx);
  for (int i = 0; i < 3; ++i) {
    int polls = 0;
    EXPECT_EQ(error_of([&] {
                two.step([&] {
                  if (++polls == i + 2) throw Error(ErrorCode::kInterrupted, "interrupted");
                });
              }),
              "interrupted");
    EXPECT_EQ(one.step().loss, two.step().loss);
  }
  EXPECT_EQ(
      std::memcmp(one.lanes()->host_copy().numbers.data(), two.lanes()->host_copy().numbers.data(),
                  one.lanes()->host_copy().numbers.size() * sizeof(float)),
      0);
}

TEST_F(TrainingRunTest, LanesAreThoseOfTheBatch) {
  TrainRecord record = carrying_record();
  const auto source = data(record);
  Context ctx = context();
  record.options.batch = 5;
  expect_error("have 6 lanes that carry states; expected 5",
               [&] { Trainer(config_, record.options, source, ctx); });
  record.options.carry_states = false;
  expect_error("expected 0", [&] { Trainer(config_, record.options, source, ctx); });
}

TEST_F(TrainingRunTest, ThreadCountChangesNoBit) {
  const TrainRecord record = small_record();
  std::vector<std::string> bytes;
  for (const int threads : {1, 3}) {
    Context ctx = context(threads);
    Trainer trainer = fresh(record, ctx);
    for (int i = 0; i < 3; ++i) trainer.step();
    write_model(run_folder("threads"), trainer);
    bytes.push_back(read_text(folder_ / "threads" / "model.safetensors"));
  }
  EXPECT_TRUE(bytes[0] == bytes[1]);
}

TEST_F(TrainingRunTest, RecomputingChangesNoBit) {
  TrainRecord record = small_record();
  std::vector<std::string> bytes;
  for (const Recompute recompute : {Recompute::kNone, Recompute::kScan, Recompute::kBlock}) {
    record.options.recompute = recompute;
    Context ctx = context();
    Trainer trainer = fresh(record, ctx);
    for (int i = 0; i < 3; ++i) trainer.step();
    write_model(run_folder("recompute"), trainer);
    bytes.push_back(read_text(folder_ / "recompute" / "model.safetensors"));
    EXPECT_TRUE(bytes.back() == bytes.front());
  }
}

TEST_F(TrainingRunTest, MicroBatchesAddUp) {
  for (TrainRecord record : {small_record(), carrying_record()}) {
    std::vector<StepReport> reports;
    for (const std::int64_t tokens : {1, 48, 110, 1000}) {
      record.options.accumulate = tokens;
      Context ctx = context();
      Trainer trainer = fresh(record, ctx);
      trainer.step();
      reports.push_back(trainer.step());
    }
    for (const StepReport& report : reports) {
      EXPECT_NEAR(report.loss, reports[0].loss, 1e-5);
      EXPECT_NEAR(report.norm, reports[0].norm, 1e-4);
    }
  }
}

TEST_F(TrainingRunTest, FiguresOfStepsThatAreTakenAgainAreReplaced) {
  const TrainRecord record = small_record();
  EXPECT_NE(error_of([&] { run(record, "run", 8); }), "");
  std::string lines = read_text(folder_ / "run" / "metrics.jsonl");
  write_text(folder_ / "run" / "metrics.jsonl", lines + "{\"step\": 9, \"loss\": 1}\n{\"st");
  run(record, "run", 1000, true);
  std::vector<std::int64_t> steps;
  std::ifstream in(folder_ / "run" / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.contains("loss")) steps.push_back(json["step"]);
  }
  ASSERT_EQ(steps.size(), 20u);
  EXPECT_TRUE(std::ranges::is_sorted(steps));
  EXPECT_EQ(steps.back(), 20);
}

// It wrote its last checkpoint and was killed before the model, the evaluation and the report.
TEST_F(TrainingRunTest, WhatAKilledOneLeftOutIsMade) {
  const TrainRecord record = small_record();
  run(record, "run");
  const fs::path model = folder_ / "run" / "model.safetensors";
  const std::string bytes = read_text(model), metrics = read_text(folder_ / "run/metrics.jsonl");
  fs::copy_file(folder_ / "run/checkpoints/step-15/model.safetensors", model,
                fs::copy_options::overwrite_existing);
  write_text(folder_ / "run/metrics.jsonl", metrics.substr(0, metrics.rfind("{")));
  fs::remove(folder_ / "run" / "report.html");
  run(record, "run", 1000, true);
  EXPECT_TRUE(read_text(model) == bytes);
  EXPECT_TRUE(read_text(folder_ / "run/metrics.jsonl") == metrics);
  EXPECT_TRUE(fs::exists(folder_ / "run" / "report.html"));
}

TEST_F(TrainingRunTest, OneThatHasEndedAddsNothing) {
  const TrainRecord record = small_record();
  const RunResult first = run(record, "run");
  const std::string metrics = read_text(folder_ / "run/metrics.jsonl");
  const RunResult again = run(record, "run", 1000, true);
  EXPECT_TRUE(read_text(folder_ / "run/metrics.jsonl") == metrics);
  ASSERT_TRUE(again.held_out.has_value());
  EXPECT_EQ(again.held_out->loss, first.held_out->loss);
  EXPECT_EQ(again.held_out->accuracy, first.held_out->accuracy);
}

TEST_F(TrainingRunTest, AnEvaluationThatWasInterruptedIsMade) {
  const TrainRecord record = small_record();
  EXPECT_NE(error_of([&] { run(record, "run", 7); }), "");
  EXPECT_TRUE(read_metrics(folder_ / "run/metrics.jsonl").evaluations.empty());
  EXPECT_TRUE(fs::exists(folder_ / "run/checkpoints/step-7"));
  run(record, "run", 1000, true);
  std::vector<std::int64_t> steps;
  for (const auto& one : read_metrics(folder_ / "run/metrics.jsonl").evaluations) {
    steps.push_back(one.step);
  }
  EXPECT_EQ(steps, (std::vector<std::int64_t>{7, 14, 20}));
}

TEST_F(TrainingRunTest, OnlyWhatAKilledOneLeftIsRemoved) {
  const fs::path run_at = run_folder("run"), checkpoints = run_folder("run/checkpoints");
  const std::string mine = "." + std::to_string(::getpid()) + "-0.tmp";  // as of its number again
  for (const fs::path& left : {run_at / ("config.json" + mine), run_at / "a.2147483647-1.tmp",
                               checkpoints / "step-3.tmp" / "config.json"}) {
    fs::create_directories(left.parent_path());
    write_text(left, "");
  }
  const fs::path others[] = {run_at / "notes.tmp", run_at / "a.1-2.tmp", run_at / "a.b-2.tmp",
                             run_at / "a.2147483647-1.tm"};
  for (const fs::path& other : others) write_text(other, "");
  run(small_record(), "run");
  for (const fs::path& other : others) EXPECT_TRUE(fs::exists(other)) << other;
  EXPECT_FALSE(fs::exists(run_at / ("config.json" + mine)));
  EXPECT_FALSE(fs::exists(run_at / "a.2147483647-1.tmp"));
  EXPECT_FALSE(fs::exists(checkpoints / "step-3.tmp"));
}

TEST_F(TrainingRunTest, AReportIsLeftHoweverItEnds) {
  const TrainRecord record = small_record();
  EXPECT_NE(error_of([&] { run(record, "run", 8); }), "");
  EXPECT_NE(read_text(folder_ / "run" / "report.html").find("<dd>8, 768 tokens</dd>"),
            std::string::npos);
  run(record, "run", 1000, true);
  const std::string report = read_text(folder_ / "run" / "report.html");
  EXPECT_NE(report.find("<dd>20, 1.92k tokens</dd>"), std::string::npos);
  EXPECT_NE(report.find("<tr><td>7</td><td>672</td>"), std::string::npos);
  fs::remove(folder_ / "run" / "report.html");
  write_report(folder_ / "run");
  EXPECT_TRUE(read_text(folder_ / "run" / "report.html") == report);
}

TEST_F(TrainingRunTest, DivergenceEndsTheRunAndNamesTheLastCheckpoint) {
  TrainRecord record = small_record();
  record.options.schedule.peak = 50;
  record.rhythm.save_every = 1;
  const std::string error = error_of([&] { run(record, "run"); });
  EXPECT_NE(error.find("training diverged: step "), std::string::npos) << error;
  EXPECT_NE(error.find("checkpoints/step-"), std::string::npos) << error;
  Context ctx = context();
  EXPECT_GE(newest_train_checkpoint(folder_ / "run", ctx).record.step, 1);
}

TEST_F(TrainingRunTest, DataOfLessThanAWindowAreRefused) {
  TrainRecord record = small_record();
  record.options.length = 1 << 20;
  EXPECT_NE(error_of([&] { data(record); }).find("at least one window"), std::string::npos);
}

TEST_F(TrainingRunTest, OptionsComeBackBitForBit) {
  TrainOptions options;
  options.schedule.peak = 0.1 + 0.2;
  options.schedule.kind = ScheduleKind::kCosine;
  options.compute = Compute::kBf16;
  options.carry_states = true;
  options.seed = ~std::uint64_t{0};
  const TrainOptions back =
      train_options_from(nlohmann::json::parse(nlohmann::json(to_json(options)).dump()));
  EXPECT_TRUE(changes(options, back).empty());
  options.batch = 7;
  EXPECT_EQ(changes(back, options), (std::vector<std::string>{"batch 7, was 128"}));
}

}  // namespace
}  // namespace mamba3
