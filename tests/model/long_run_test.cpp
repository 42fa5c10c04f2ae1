// 100,000 decoded tokens: nothing drifts away from a prefill of the same tokens, and nothing grows.
#include <gtest/gtest.h>

#include <cmath>

#include "core/arena.h"
#include "mamba3/model.h"
#include "tiny_models.h"

namespace mamba3 {
namespace {

class LongRun : public testing::TestWithParam<int> {};

TEST_P(LongRun, StepsStayWithPrefillAndMemoryStaysPut) {
  constexpr std::int64_t kTokens = 100000;
  constexpr std::int64_t kWarmTokens = 10;
  Context ctx(ContextOptions{1, 0, {}});
  ModelConfig config = tiny_models()[GetParam()].config;
  config.layers = 1;
  const auto model = Model::random(config, DType::kF32, 23, {}, ctx);
  const auto ids = random_ids(kTokens, config.vocab, 29);
  StatePool pool(config, 2, ctx);
  const std::int64_t v = config.padded_vocab();
  std::vector<float> stepped(v), prefilled(v);
  const std::int32_t slot[] = {0};
  std::size_t warm_bytes = 0;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    model->step(std::span(ids).subspan(t, 1), slot, pool, {stepped.data(), {1, v}}, ctx);
    if (t == kWarmTokens) warm_bytes = ctx.workspace().capacity_bytes();
  }
  EXPECT_EQ(ctx.workspace().capacity_bytes(), warm_bytes) << "decoding allocates";

  const std::int64_t cu[] = {0, kTokens};
  const std::int32_t other[] = {1};
  PrefillArgs args;
  args.ids = ids;
  args.cu_seqlens = cu;
  args.slots = other;
  args.last_logits = {prefilled.data(), {1, v}};
  model->prefill(args, pool, ctx);
  double worst = 0, scale = 0;
  for (std::int64_t i = 0; i < v; ++i) {
    worst = std::max(worst, static_cast<double>(std::abs(stepped[i] - prefilled[i])));
    scale = std::max(scale, static_cast<double>(std::abs(prefilled[i])));
  }
  EXPECT_LT(worst / scale, 5e-5);
  const auto a = pool.export_slot(0, 1), b = pool.export_slot(1, 1);
  EXPECT_EQ(a.position(), kTokens);
  EXPECT_EQ(b.position(), kTokens);
  // The two paths' products differ in the last bits of dt, so an angle of hundreds of turns differs
  // by fp32's share of that, and no more.
  constexpr double kMostTurns = 500 * 1.2e-7 * 10;
  for (std::int64_t i = 0; i < config.heads() * config.mixer.angles(); ++i) {
    const auto apart = static_cast<std::int32_t>(a.parts(0).turns[i] - b.parts(0).turns[i]);
    ASSERT_LT(std::abs(apart) / 4294967296.0, kMostTurns) << "angle " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, LongRun, testing::Values(0, 1),
                         [](const auto& tiny) { return tiny_models()[tiny.param].name; });

}  // namespace
}  // namespace mamba3
