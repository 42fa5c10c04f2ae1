// Whole models that decode on a GPU with a ring of deferred tokens. Skipped where there is none.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "mamba3/error.h"
#include "mamba3/model.h"
#include "tiny_models.h"

namespace mamba3 {
namespace {

// Of the largest logit: two layers of fp32 roundings, and those of a plain step beside them.
constexpr double kClose = 2e-5;

// A shape that has rings.
ModelConfig ring_config(bool mimo) {
  ModelConfig config = tiny_models()[0].config;
  config.width = 96;
  config.mixer.state = 64;
  config.mixer.head_dim = 64;
  config.mixer.groups = 1;
  config.mixer.mimo = mimo;
  config.mixer.rank = mimo ? 4 : 1;
  return config;
}

class CudaRingModel : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
    ContextOptions options;
    options.threads = 1;
    options.device.kind = DeviceKind::kCuda;
    ctx_ = std::make_unique<Context>(options);
    model_ = Model::random(ring_config(GetParam()), DType::kF32, 7, {}, *ctx_);
    if (pool(1, -1).ring_tokens() == 0) GTEST_SKIP() << "no card with rings";
  }

  StatePool pool(std::int64_t slots, std::int64_t ring, bool stagger = false) {
    return StatePool(model_->config(), slots, *ctx_, {ring, stagger});
  }
  std::vector<float> step(StatePool& states, std::int32_t slot, std::int32_t id) {
    std::vector<float> out(model_->config().padded_vocab());
    model_->step({&id, 1}, {&slot, 1}, states, {out.data(), {1, model_->config().padded_vocab()}},
                 *ctx_);
    return out;
  }
  std::vector<float> read(StatePool& states, std::int32_t slot, std::int64_t count) {
    const auto ids = random_ids(count, model_->config().vocab, 5);
    std::vector<float> out(model_->config().padded_vocab());
    const std::int64_t cu[] = {0, count};
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu;
    args.slots = {&slot, 1};
    args.last_logits = {out.data(), {1, model_->config().padded_vocab()}};
    model_->prefill(args, states, *ctx_);
    return out;
  }
  static void expect_close(const std::vector<float>& got, const std::vector<float>& want) {
    double worst = 0, scale = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      ASSERT_TRUE(std::isfinite(got[i])) << i;
      worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
      scale = std::max(scale, std::abs(static_cast<double>(want[i])));
    }
    EXPECT_LE(worst, kClose * scale);
  }

  std::unique_ptr<Context> ctx_;
  std::shared_ptr<const Model> model_;
};

// Prompts before and between steps, over more than two periods.
TEST_P(CudaRingModel, StepsAndReadsAsWithoutARing) {
  for (const std::int64_t ring : {1, 8, 16}) {
    for (const bool stagger : {false, true}) {
      StatePool with = pool(6, ring, stagger), without = pool(6, 0);
      EXPECT_EQ(with.ring_tokens(), ring);
      EXPECT_EQ(without.ring_tokens(), 0);
      for (const std::int32_t slot : {5, 2}) {
        expect_close(read(with, slot, 9), read(without, slot, 9));
        for (std::int32_t t = 0; t < 37; ++t) {
          expect_close(step(with, slot, t), step(without, slot, t));
        }
        expect_close(read(with, slot, 3), read(without, slot, 3));
        expect_close(step(with, slot, 1), step(without, slot, 1));
        EXPECT_EQ(with.position(slot), 50);
      }
    }
  }
}

TEST_P(CudaRingModel, ExportsForksAndResetsAtAnyMoment) {
  StatePool states = pool(3, 8), plain = pool(3, 0);
  for (std::int32_t t = 0; t < 20; ++t) {
    step(states, 0, t);
    step(plain, 0, t);
    states.fork(0, 1);
    const SequenceState got = states.export_slot(1, model_->fingerprint());
    const SequenceState want = plain.export_slot(0, model_->fingerprint());
    EXPECT_EQ(got.position(), t + 1);
    for (std::int64_t l = 0; l < model_->config().layers; ++l) {
      const LayerState a = got.export_layer(l), b = want.export_layer(l);
      expect_close(a.ssm, b.ssm);
      expect_close(a.k, b.k);
    }
    // A fork that was settled goes on as its origin; so does an imported copy.
    plain.fork(0, 1);
    expect_close(step(states, 1, 3), step(plain, 1, 3));
    states.import_slot(2, want);
    plain.import_slot(2, want);
    expect_close(step(states, 2, 3), step(plain, 2, 3));
    states.reset(1);
    plain.reset(1);
    expect_close(step(states, 1, 2), step(plain, 1, 2));
  }
}

// With same_bits a step of 37 sequences gives each the bits of a step of its own.
TEST_P(CudaRingModel, SameBitsDoNotDependOnTheNumberOfSequences) {
  constexpr std::int32_t kMany = 37;
  ContextOptions options;
  options.threads = 1;
  options.device.kind = DeviceKind::kCuda;
  options.same_bits = true;
  ctx_ = std::make_unique<Context>(options);
  model_ = Model::random(ring_config(GetParam()), DType::kBf16, 7, {}, *ctx_);
  StatePool together = pool(kMany, -1), alone = pool(kMany, -1);
  std::vector<std::int32_t> ids, slots;
  for (std::int32_t slot = 0; slot < kMany; ++slot) {
    ids.push_back(slot * 5 % 89);
    slots.push_back(slot);
  }
  const std::int64_t v = model_->config().padded_vocab();
  std::vector<float> all(static_cast<std::size_t>(kMany * v));
  for (int token = 0; token < 11; ++token) {
    model_->step(ids, slots, together, {all.data(), {kMany, v}}, *ctx_);
    for (const std::int32_t slot : {0, 15, 16, 36}) {
      const std::vector<float> own = step(alone, slot, ids[slot]);
      EXPECT_TRUE(std::equal(own.begin(), own.end(), all.begin() + slot * v)) << slot;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, CudaRingModel, testing::Values(false, true));

TEST(RingPool, IsRefusedWithoutAGpu) {
  Context ctx;
  const ModelConfig config = ring_config(false);
  EXPECT_EQ(StatePool(config, 2, ctx).ring_tokens(), 0);
  EXPECT_EQ(StatePool(config, 2, ctx, {0, true}).ring_tokens(), 0);
  EXPECT_THROW(StatePool(config, 2, ctx, {8, false}), Error);
  EXPECT_THROW(StatePool(config, 2, ctx, {17, false}), Error);
}

}  // namespace
}  // namespace mamba3
