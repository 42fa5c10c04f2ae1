// What a training is said to take of a GPU against what a pass takes. Skipped where there is no
// GPU.
#include "byte_tokens.h"
#include "core/arena.h"
#include "core/gpu.h"
#include "core/mirror.h"
#include "tiny_training.h"
#include "train/lane_source.h"
#include "train/trainer.h"
#include "train/training_memory.h"

namespace mamba3 {
namespace {

ContextOptions on_gpu() {
  ContextOptions options;
  options.device = {DeviceKind::kCuda, 0};
  return options;
}

// Layers like those of the large presets, whose way back takes the most of a pass.
ModelConfig layers_of_128(bool mimo, std::int64_t width) {
  ModelConfig config;
  config.width = width;
  config.layers = 2;
  config.vocab = 97;
  config.mlp_hidden = 256;
  config.mixer.state = 128;
  config.mixer.head_dim = 64;
  config.mixer.mimo = mimo;
  config.mixer.rank = mimo ? 4 : 1;
  return config;
}

TEST(CudaTrainingMemory, IsWhatAPassTakesAndNotMuchMore) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  for (const bool mimo : {false, true}) {
    for (const std::int64_t width : {256, 96}) {  // the latter's in_proj has an odd number of rows
      for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
        const ModelConfig config = layers_of_128(mimo, width);
        Context ctx(on_gpu());
        TrainOptions options;
        options.batch = 4;
        options.length = 3000;
        options.accumulate = 4 * 3000;
        options.compute = compute;
        const std::int64_t needed = training_memory_needed(config, options, ctx).pass_bytes;
        const DType matrices = compute == Compute::kBf16 ? DType::kBf16 : DType::kF32;
        const auto initial = init_tensors(config, matrices, 1, ctx);
        const ModelWeights weights = bind_weights(config, initial.tensors, nullptr, ctx);
        ParameterValues gradients(config, ctx.gpu());
        CrossEntropySums sums;
        const Mirror<CrossEntropySums> there({&sums, 1}, ctx);
        const std::int64_t length = options.length;
        const TokenBatch batch(random_ids(4 * length, config.vocab, 5),
                               {length, length, length, length});
        loss_and_gradients(config, weights, batch.view(), loss_options(options), gradients,
                           there.data(), ctx);
        const auto taken = static_cast<std::int64_t>(ctx.workspace().peak_bytes());
        constexpr auto kRounding = static_cast<std::int64_t>(2 * Arena::kAlignBytes);
        EXPECT_LE(taken, needed + kRounding) << mimo << " " << width;
        EXPECT_LE(needed, taken + taken / 10) << mimo << " " << width;
      }
    }
  }
}

// Documents end in windows of later steps only, and the workspace does not grow there.
TEST(CudaTrainingMemory, IsReservedForEveryStepWhereLanesCarryStates) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  const TempFolder folder;
  std::string text(3000, 'a');
  for (int i = 0; i < 150; ++i) text += "\n<|endoftext|>\n" + std::string(i % 40, 'b');
  const auto cache = cache_of_text(folder, text);
  for (const bool mimo : {false, true}) {
    for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
      ModelConfig config = layers_of_128(mimo, 256);
      config.vocab = 257;
      TrainOptions options;
      options.batch = 2;
      options.length = 300;
      options.compute = compute;
      options.carry_states = true;
      const auto source = std::make_shared<LaneSource>(
          WindowReader(TokenSelection(cache), options.length, "text"), options.batch);
      Context ctx(on_gpu());
      Trainer trainer(config, options, source, ctx);
      const std::size_t reserved = ctx.workspace().capacity_bytes();
      trainer.assign(init_tensors(config, DType::kF32, 1, ctx).tensors);
      const std::int64_t epoch = source->sequences() / options.batch;
      while (trainer.steps() < epoch) trainer.step();
      EXPECT_EQ(ctx.workspace().capacity_bytes(), reserved);
    }
  }
}

}  // namespace
}  // namespace mamba3
