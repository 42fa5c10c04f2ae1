// A model learns a task, in seconds: the smallest one that counting symbols does not solve.
#include <gtest/gtest.h>

#include "model/init.h"
#include "train/task_source.h"
#include "train/trainer.h"

namespace mamba3 {
namespace {

ModelConfig one_layer() {
  ModelConfig config;
  config.width = 32;
  config.layers = 1;
  config.vocab = std::ssize(task_symbols(Task::kParity));
  config.mixer.state = 16;
  return config;
}

Context one_thread() {
  ContextOptions options;
  options.threads = 1;
  return Context(std::move(options));
}

TEST(TaskTraining, TheParityOfTwoBitsIsLearnt) {
  const ModelConfig config = one_layer();
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
  Context ctx = one_thread();
  Trainer trainer(config, options, training_sequences(task, options.batch, options.seed), ctx);
  trainer.assign(init_tensors(config, DType::kF32, options.seed, ctx).tensors);
  const auto held_out = evaluation_sequences(task);
  EXPECT_NEAR(trainer.evaluate(*held_out, 512).accuracy, 0.5, 0.3);
  while (trainer.steps() < options.schedule.steps) trainer.step();
  const Evaluation found = trainer.evaluate(*held_out, 512);
  EXPECT_EQ(found.accuracy, 1);
  EXPECT_LT(found.loss, 0.1);
}

// A model that is sure of itself and wrong of half of the sequences can come back.
TEST(TaskTraining, LossesFarAboveGuessingAreNoDivergence) {
  ModelConfig config = one_layer();
  config.tied_embeddings = false;
  TrainOptions options;
  options.batch = 64;
  Context ctx = one_thread();
  InitialTensors first = init_tensors(config, DType::kF32, 1, ctx);
  TensorRef& head = first.tensors.at("lm_head.weight");
  const auto* numbers = reinterpret_cast<const float*>(head.data);
  std::vector<float> sure(numbers, numbers + config.padded_vocab() * config.width);
  for (float& number : sure) number *= 50;
  head.data = reinterpret_cast<const std::byte*>(sure.data());
  Trainer trainer(config, options, training_sequences({}, options.batch, 1), ctx);
  trainer.assign(first.tensors);
  const double loss = trainer.step().loss;
  EXPECT_GT(loss, 12);
  EXPECT_LT(loss, 90);
}

}  // namespace
}  // namespace mamba3
