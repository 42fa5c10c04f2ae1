// Trainings on threads of their own, each with its Context, as a sweep makes them: what one leaves
// does not depend on the others.
#include <algorithm>
#include <exception>
#include <thread>

#include "core/gpu.h"
#include "tiny_training.h"
#include "train/task_source.h"
#include "train/trainer.h"

namespace mamba3 {
namespace {

struct Training {
  ModelConfig config;
  Compute compute = Compute::kF32;
};

// Shapes for which the same kernels want more memory or less, those of a sweep among them.
std::vector<Training> trainings() {
  std::vector<TinyModel> models = models_in_bf16();
  ModelConfig tracking = models[0].config;
  tracking.mixer.head_dim = 8;
  tracking.mlp_hidden = 0;
  tracking.tied_embeddings = false;
  models.push_back({"tracking", tracking});
  std::vector<Training> out;
  for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
    for (TinyModel model : models) {
      ModelConfig& config = model.config;
      config.vocab = std::ssize(task_symbols(Task::kParity));
      out.push_back({config, compute});
      config.mixer.rope_fraction = 1;
      out.push_back({config, compute});
      config.mixer.rope = Rope::kNone;
      out.push_back({config, compute});
    }
  }
  return out;
}

// The weights behind so many steps.
ParameterValues train(const Training& training, DeviceKind device, int steps) {
  ContextOptions context;
  context.threads = 1;
  context.device = {device, 0};
  Context ctx(std::move(context));
  TaskOptions task;
  task.stages = {40};
  TrainOptions options;
  options.batch = 16;
  options.length = 40;
  options.compute = training.compute;
  options.schedule.steps = steps;
  options.seed = 1;
  Trainer trainer(training.config, options, training_sequences(task, options.batch, options.seed),
                  ctx);
  trainer.assign(init_tensors(training.config, DType::kF32, options.seed, ctx).tensors);
  while (trainer.steps() < steps) trainer.step();
  return trainer.weights().host_copy();
}

void expect_same_bits_at_once(DeviceKind device, int steps) {
  const std::vector<Training> all = trainings();
  std::vector<std::vector<float>> together(all.size());
  std::vector<std::exception_ptr> failures(all.size());
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < all.size(); ++i) {
      threads.emplace_back([&, i] {
        try {
          const ParameterValues weights = train(all[i], device, steps);
          together[i].assign(weights.all().begin(), weights.all().end());
        } catch (...) {
          failures[i] = std::current_exception();
        }
      });
    }
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    if (failures[i]) std::rethrow_exception(failures[i]);
    const ParameterValues alone = train(all[i], device, steps);
    EXPECT_TRUE(std::ranges::equal(together[i], alone.all()));
  }
}

TEST(TrainingsAtOnce, ChangeNoBit) {
  expect_same_bits_at_once(DeviceKind::kCpu, 3);
}

TEST(CudaTrainingsAtOnce, ChangeNoBit) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  expect_same_bits_at_once(DeviceKind::kCuda, 20);
}

}  // namespace
}  // namespace mamba3
