// A model learns a task, in seconds: the smallest one that counting symbols does not solve.
#include <gtest/gtest.h>

#include "model/init.h"
#include "train/task_source.h"
#include "train/trainer.h"

namespace mamba3 {
namespace {

TEST(TaskTraining, TheParityOfTwoBitsIsLearnt) {
  ModelConfig config;
  config.width = 32;
  config.layers = 1;
  config.vocab = std::ssize(task_symbols(Task::kParity));
  config.mixer.state = 16;
  TaskOptions task;
  task.stages = {3};
  task.eval_length = 3;
  TrainOptions options;
  options.batch = 64;
  options.schedule.steps = 500;
  options.schedule.peak = 1e-2;
  options.schedule.warmup_steps = 10;
  options.optimizer.decay = 0;
  options.seed = 1;
  ContextOptions context;
  context.threads = 1;
  Context ctx(std::move(context));
  Trainer trainer(config, options, training_sequences(task, options.batch, options.seed), ctx);
  trainer.assign(init_tensors(config, DType::kF32, options.seed, ctx).tensors);
  const auto held_out = evaluation_sequences(task);
  EXPECT_NEAR(trainer.evaluate(*held_out, 512).accuracy, 0.5, 0.3);
  while (trainer.steps() < options.schedule.steps) trainer.step();
  const Evaluation found = trainer.evaluate(*held_out, 512);
  EXPECT_EQ(found.accuracy, 1);
  EXPECT_LT(found.loss, 0.1);
}

}  // namespace
}  // namespace mamba3
