// Whole models on a GPU against the CPU. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "core/tolerance.h"
#include "mamba3/error.h"
#include "mamba3/model.h"
#include "tiny_models.h"

namespace mamba3 {
namespace {

constexpr double kClose = 1e-4;  // of the largest logit: a few layers of fp32 roundings

// A model and one sequence of it on one device.
struct OnDevice {
  OnDevice(const ModelConfig& config, DeviceKind kind, DType weights = DType::kF32,
           const ModelOptions& model_options = {})
      : ctx([&] {
          ContextOptions options;
          options.threads = 1;
          options.device.kind = kind;
          return Context(options);
        }()),
        model(Model::random(config, weights, 7, model_options, ctx)),
        pool(config, 2, ctx) {}

  std::vector<float> read(std::span<const std::int32_t> ids) {
    std::vector<float> out(model->config().padded_vocab());
    const std::int64_t cu[] = {0, static_cast<std::int64_t>(ids.size())};
    const std::int32_t slot[] = {1};
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu;
    args.slots = slot;
    args.last_logits = {out.data(), {1, model->config().padded_vocab()}};
    model->prefill(args, pool, ctx);
    return out;
  }

  std::vector<float> step(std::int32_t id) {
    std::vector<float> out(model->config().padded_vocab());
    const std::int32_t ids[] = {id}, slots[] = {1};
    model->step(ids, slots, pool, {out.data(), {1, model->config().padded_vocab()}}, ctx);
    return out;
  }

  Context ctx;
  std::shared_ptr<const Model> model;
  StatePool pool;
};

void expect_close(const std::vector<float>& got, const std::vector<float>& want) {
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_FALSE(std::isnan(got[i])) << i;
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
    scale = std::max(scale, std::abs(static_cast<double>(want[i])));
  }
  EXPECT_LE(worst, kClose * scale);
}

class CudaModel : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  }
  static std::vector<std::int32_t> ids(const ModelConfig& config, std::int64_t count) {
    std::vector<std::int32_t> out;
    for (std::int64_t i = 0; i < count; ++i) {
      out.push_back(static_cast<std::int32_t>((i * 37 + 11) % config.vocab));
    }
    return out;
  }
};

TEST_P(CudaModel, ReadsAndStepsAsTheCpu) {
  const ModelConfig config = tiny_models()[GetParam()].config;
  OnDevice cpu(config, DeviceKind::kCpu), gpu(config, DeviceKind::kCuda);
  for (const std::int64_t count : {1, 37, 130}) {
    const auto some = ids(config, count);
    expect_close(gpu.read(some), cpu.read(some));
    expect_close(gpu.step(3), cpu.step(3));
  }
}

// A state moves between the devices, both ways, and the sequence goes on as if it had not.
TEST_P(CudaModel, StatesMoveBetweenDevices) {
  const ModelConfig config = tiny_models()[GetParam()].config;
  OnDevice cpu(config, DeviceKind::kCpu), gpu(config, DeviceKind::kCuda);
  const auto some = ids(config, 70);
  gpu.read(some);
  const SequenceState state = gpu.pool.export_slot(1, gpu.model->fingerprint());
  cpu.pool.import_slot(1, state);
  EXPECT_EQ(cpu.pool.export_slot(1, gpu.model->fingerprint()).serialize(), state.serialize());
  expect_close(cpu.step(5), gpu.step(5));
  gpu.pool.import_slot(1, cpu.pool.export_slot(1, cpu.model->fingerprint()));
  expect_close(gpu.step(6), cpu.step(6));
}

TEST_P(CudaModel, RefusesStatesOfAnotherDevice) {
  const ModelConfig config = tiny_models()[GetParam()].config;
  OnDevice cpu(config, DeviceKind::kCpu), gpu(config, DeviceKind::kCuda);
  const std::int32_t ids[] = {1}, slots[] = {0};
  std::vector<float> out(config.padded_vocab());
  EXPECT_THROW(
      gpu.model->step(ids, slots, cpu.pool, {out.data(), {1, config.padded_vocab()}}, gpu.ctx),
      Error);
}

// Prompts in bf16 of a model whose norms are shared between products where a kernel does that: as
// good as a CPU's in bf16, both against fp32.
TEST(CudaModelInBf16, SharedNormsRoundNoMoreThanWholeOnes) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  for (const std::int64_t hidden : {640, 0}) {
    ModelConfig config = tiny_models()[0].config;
    config.width = 512;
    config.layers = 3;
    config.mlp_hidden = hidden;
    config.mixer.state = 128;
    config.mixer.head_dim = 64;
    config.mixer.groups = 1;
    OnDevice truth(config, DeviceKind::kCpu, DType::kBf16, {ComputeDType::kF32, false});
    OnDevice naive(config, DeviceKind::kCpu, DType::kBf16, {ComputeDType::kBf16, false});
    OnDevice gpu(config, DeviceKind::kCuda, DType::kBf16, {ComputeDType::kBf16, false});
    for (const std::int64_t count : {1, 37, 300}) {
      const std::vector<std::int32_t> some = random_ids(count, config.vocab, 3);
      const std::vector<float> got = gpu.read(some), plain = naive.read(some),
                               right = truth.read(some);
      const Comparison c = compare(std::span<const float>(got), std::span<const float>(plain),
                                   std::span<const float>(right), kBf16Rounding);
      EXPECT_TRUE(c.ok) << hidden << ", " << count << " tokens: off by " << c.error
                        << ", allowed are " << c.bound;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaModel,
                         testing::Range(0, static_cast<int>(tiny_models().size())));

}  // namespace
}  // namespace mamba3
