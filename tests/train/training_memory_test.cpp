#include "train/training_memory.h"

#include "../io/file_test_util.h"
#include "core/arena.h"
#include "model/init.h"
#include "train/loss_and_gradients.h"
#include "train/task_source.h"
#include "train/trainer.h"

namespace mamba3 {
namespace {

ModelConfig model(bool mimo, std::int64_t mlp) {
  ModelConfig config;
  config.width = 128;
  config.mlp_hidden = mlp;
  config.layers = 3;
  config.vocab = 3000;
  config.mixer.state = mimo ? 128 : 64;
  config.mixer.head_dim = 64;
  config.mixer.mimo = mimo;
  config.mixer.rank = mimo ? 4 : 1;
  return config;
}

Context on_cpu(int threads = 1) {
  ContextOptions options;
  options.threads = threads;
  return Context(options);
}

// What a pass takes of its Context's workspace, with so many pieces in each window.
std::int64_t measured(const ModelConfig& config, const TrainOptions& options, std::int64_t windows,
                      int threads, std::int64_t pieces = 1) {
  Context ctx = on_cpu(threads);
  const auto first = init_tensors(config, DType::kF32, 1, ctx);
  ParameterValues gradients(config);
  const ModelWeights bound = bind_weights(config, first.tensors, nullptr, ctx);
  const std::vector<std::int32_t> ids(static_cast<std::size_t>(windows * options.length), 1);
  std::vector<std::int64_t> cu;
  for (std::int64_t i = 0; i <= windows * pieces; ++i) cu.push_back(i * options.length / pieces);
  LossOptions loss;
  loss.compute = options.compute;
  loss.recompute = options.recompute;
  CrossEntropySums sums;
  loss_and_gradients(config, bound, {ids, ids, cu}, loss, gradients, &sums, ctx);
  return static_cast<std::int64_t>(ctx.workspace().peak_bytes());
}

TEST(TrainingMemory, IsWhatAPassTakesAndNotMuchMore) {
  for (const bool mimo : {false, true}) {
    for (const std::int64_t mlp : {0, 256}) {
      const ModelConfig config = model(mimo, mlp);
      for (const Recompute recompute : {Recompute::kNone, Recompute::kScan, Recompute::kBlock}) {
        for (const auto& [windows, length] :
             {std::pair(1, 24), std::pair(8, 64), std::pair(1, 530)}) {
          TrainOptions options;
          options.batch = windows;
          options.length = length;
          options.recompute = recompute;
          options.compute = mimo ? Compute::kBf16 : Compute::kF32;
          const int threads = mimo ? 3 : 1;
          const std::int64_t needed =
              training_memory_needed(config, options, on_cpu(threads)).pass_bytes;
          const std::int64_t taken = measured(config, options, windows, threads);
          const std::string which = str(mimo, " ", mlp, " ", windows, " x ", length);
          EXPECT_LE(taken, needed) << which;
          EXPECT_LE(needed, taken + taken / 10 + (1 << 20)) << which;
        }
      }
    }
  }
}

// Documents cut each window of a lane into four pieces.
class FourPieces : public BatchSource {
 public:
  SequenceBatch read(std::int64_t, std::int64_t) const override { return {}; }
  std::int64_t most_pieces(std::int64_t sequences) const override { return 4 * sequences; }
  std::int64_t sequences() const override { return kEndless; }
  std::int64_t sequences_in(std::int64_t, std::int64_t) const override { return 1; }
  std::int64_t targets_each() const override { return 1; }
  std::string names(std::int64_t, std::int64_t) const override { return {}; }
};

TEST(TrainingMemory, CountsStatesOfLanesAndOfPieces) {
  for (const bool mimo : {false, true}) {
    const ModelConfig config = model(mimo, 256);
    TrainOptions options;
    options.batch = 24;
    options.length = 64;
    options.accumulate = 8 * 64;
    EXPECT_EQ(training_memory_needed(config, options, on_cpu()).states_bytes, 0);
    options.carry_states = true;
    const FourPieces data;
    const TrainingMemory need = training_memory_needed(config, options, on_cpu(), &data);
    EXPECT_EQ(need.micro_batch, 512);
    // Twice, of each layer and lane, and a fresh one: ssm, k, v and turns.
    const std::int64_t heads = config.heads(), n = config.mixer.state, p = config.mixer.head_dim;
    const std::int64_t numbers =
        heads * (p * n + config.mixer.rank * n + p + config.mixer.angles());
    EXPECT_GE(need.states_bytes, 2 * 3 * 25 * 4 * numbers);
    EXPECT_LE(need.states_bytes, 2 * 3 * 25 * 4 * (numbers + 64));
    const std::int64_t taken = measured(config, options, 8, 1, 4);
    EXPECT_LE(taken, need.pass_bytes);
    EXPECT_LE(need.pass_bytes, taken * 3 / 2 + (24 << 20));
    EXPECT_GT(need.pass_bytes - training_memory_needed(config, options, on_cpu()).pass_bytes,
              2 * 24 * 4 * numbers);
    EXPECT_NE(describe(need).find("carried states 0.0"), std::string::npos) << describe(need);
    EXPECT_EQ(largest_accumulate(config, options, need.total_bytes(), on_cpu(), &data), 512);
    EXPECT_EQ(largest_accumulate(config, options, need.total_bytes() - 1, on_cpu(), &data), 448);
  }
}

TEST(TrainingMemory, GrowsWithWhatIsReadAtOnceAlone) {
  const ModelConfig config = model(false, 256);
  TrainOptions options;
  options.batch = 64;
  options.length = 100;
  options.accumulate = 450;
  const TrainingMemory few = training_memory_needed(config, options, on_cpu());
  EXPECT_EQ(few.micro_batch, 400);
  options.batch = 640;
  EXPECT_EQ(training_memory_needed(config, options, on_cpu()).total_bytes(), few.total_bytes());
  options.accumulate = 1;
  EXPECT_EQ(training_memory_needed(config, options, on_cpu()).micro_batch, 100);
  options.accumulate = 1 << 30;
  EXPECT_EQ(training_memory_needed(config, options, on_cpu()).micro_batch, 64'000);
  EXPECT_EQ(few.parameters_bytes, config.parameters() * 16);
  options.compute = Compute::kBf16;
  EXPECT_EQ(training_memory_needed(config, options, on_cpu()).parameters_bytes,
            config.parameters() * 18);
}

TEST(TrainingMemory, ARefusalNamesWhatFits) {
  const ModelConfig config = model(false, 256);
  TrainOptions options;
  options.batch = 64;
  options.length = 100;
  options.accumulate = 6400;
  const std::int64_t all = training_memory_needed(config, options, on_cpu()).total_bytes();
  EXPECT_NO_THROW(check_training_memory(config, options, all, on_cpu()));
  EXPECT_EQ(largest_accumulate(config, options, all, on_cpu()), 6400);
  EXPECT_EQ(largest_accumulate(config, options, all - 1, on_cpu()), 6300);
  try {
    check_training_memory(config, options, all - 1, on_cpu());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
    EXPECT_NE(std::string(error.what()).find("--accumulate 6300 fits"), std::string::npos)
        << error.what();
  }
  options.accumulate = 6300;
  EXPECT_NO_THROW(check_training_memory(config, options, all - 1, on_cpu()));
}

TEST(TrainingMemory, ARefusalNamesWhatFitsWithoutAWindow) {
  const ModelConfig config = model(false, 256);
  TrainOptions options;
  options.batch = 4;
  options.length = 2000;
  options.accumulate = 2000;
  const std::int64_t one = training_memory_needed(config, options, on_cpu()).total_bytes();
  expect_error("--recompute block with --accumulate 2000 fits",
               [&] { check_training_memory(config, options, one - 1, on_cpu()); });
  expect_error("not even one window of 2000 tokens fits",
               [&] { check_training_memory(config, options, one / 4, on_cpu()); });
  EXPECT_EQ(largest_accumulate(config, options, 0, on_cpu()), 0);
}

// The first stage's sequences are short, and the workspace does not grow with the later ones.
TEST(TrainingMemory, IsReservedForTheLongestStageOfATask) {
  ModelConfig config = model(false, 128);
  TaskOptions task;
  task.stages = {4, 40};
  task.stage_steps = 2;
  config.vocab = std::ssize(task_symbols(task.task));
  TrainOptions options;
  options.batch = 16;
  options.length = task.stages.back();
  Context ctx = on_cpu();
  Trainer trainer(config, options, training_sequences(task, options.batch, 1), ctx);
  trainer.assign(init_tensors(config, DType::kF32, 1, ctx).tensors);
  trainer.step();
  const std::size_t reserved = ctx.workspace().capacity_bytes();
  while (trainer.steps() < task.steps()) trainer.step();
  EXPECT_EQ(ctx.workspace().capacity_bytes(), reserved);
}

}  // namespace
}  // namespace mamba3
