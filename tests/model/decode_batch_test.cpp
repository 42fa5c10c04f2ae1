// Decoding with sampling against single steps whose logits are sampled on the host; on the CPU and,
// where there is one, on a GPU.
#include <gtest/gtest.h>

#include <limits>
#include <optional>

#include "core/gpu.h"
#include "mamba3/error.h"
#include "mamba3/model.h"
#include "tiny_models.h"

namespace mamba3 {
namespace {

struct Place {
  DeviceKind kind;
  int tiny;
};

ContextOptions options_of(DeviceKind kind) {
  ContextOptions options;
  options.threads = 2;
  options.device.kind = kind;
  return options;
}

class DecodeBatches : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    if (GetParam().kind == DeviceKind::kCuda && gpu_count() == 0) GTEST_SKIP() << "no GPU";
    ctx.emplace(options_of(GetParam().kind));
    model = Model::random(tiny_models()[GetParam().tiny].config, DType::kBf16, 5, {}, *ctx);
    pool.emplace(model->config(), kSlots, *ctx);
    for (std::int32_t slot = 0; slot < kSlots; ++slot) read_prompt(*pool, slot);
  }

  // A prompt of its own for each slot.
  void read_prompt(StatePool& states, std::int32_t slot) {
    const auto ids = random_ids(3 + slot, model->config().vocab, 40 + slot);
    const std::int64_t cu[] = {0, static_cast<std::int64_t>(ids.size())};
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu;
    args.slots = {&slot, 1};
    states.reset(slot);
    model->prefill(args, states, *ctx);
  }

  DecodeRow row(std::int32_t slot) const {
    DecodeRow out;
    out.slot = slot;
    out.id = slot + 1;
    out.sampling.temperature = slot % 3 == 0 ? 0.0f : 0.7f + 0.3f * static_cast<float>(slot);
    out.sampling.top_k = slot % 4 == 1 ? 20 : 0;
    out.sampling.top_p = slot % 2 == 0 ? 1.0f : 0.9f;
    out.sampling.min_p = slot == 5 ? 0.1f : 0.0f;
    out.seed = 77;
    out.stream = static_cast<std::uint64_t>(slot);
    return out;
  }

  // The same by Model::step, this sequence alone.
  std::vector<std::int32_t> alone(DecodeRow from, int steps) {
    StatePool states(model->config(), kSlots, *ctx);
    read_prompt(states, from.slot);
    std::vector<float> logits(static_cast<std::size_t>(model->config().padded_vocab()));
    std::vector<std::int32_t> out;
    for (int i = 0; i < steps; ++i) {
      model->step({&from.id, 1}, {&from.slot, 1}, states,
                  {logits.data(), {1, model->config().padded_vocab()}}, *ctx);
      from.id = sample_token({logits.data(), static_cast<std::size_t>(model->config().vocab)}, {},
                             from.sampling, uniform_draw(from.seed, from.stream, from.position++))
                    .id;
      out.push_back(from.id);
    }
    return out;
  }

  static constexpr std::int32_t kSlots = 7;
  std::optional<Context> ctx;
  std::shared_ptr<const Model> model;
  std::optional<StatePool> pool;
};

// Sequences come, go and change places; each gets the ids that it gets alone.
TEST_P(DecodeBatches, SequencesDoNotDependOnTheirNeighbours) {
  const std::vector<std::vector<std::int32_t>> turns = {
      {0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {2, 0, 1, 5}, {5, 2},    {5, 2}, {5, 2},
      {3},       {3},       {3},       {4, 3},       {0, 4, 6}, {1},    {0, 1, 2, 3, 4, 5, 6},
      {0, 1, 2}, {0, 1, 2}, {6, 5, 4}, {6, 5, 4},    {6, 5, 4}};
  DecodeBatch batch(*model, *pool, kSlots, *ctx);
  std::vector<DecodeRow> next;
  std::vector<std::vector<std::int32_t>> got(kSlots);
  for (std::int32_t slot = 0; slot < kSlots; ++slot) next.push_back(row(slot));
  for (const auto& turn : turns) {
    std::vector<DecodeRow> rows;
    for (const std::int32_t slot : turn) rows.push_back(next[slot]);
    const auto tokens = batch.step(rows);
    ASSERT_EQ(tokens.size(), rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(tokens[i].status, SampleStatus::kOk);
      EXPECT_LE(tokens[i].logprob, 0);
      DecodeRow& mine = next[turn[i]];
      mine.id = tokens[i].id;
      ++mine.position;
      got[turn[i]].push_back(tokens[i].id);
    }
  }
  for (std::int32_t slot = 0; slot < kSlots; ++slot) {
    EXPECT_EQ(got[slot], alone(row(slot), static_cast<int>(got[slot].size()))) << slot;
    EXPECT_EQ(pool->position(slot), 3 + slot + std::ssize(got[slot])) << slot;
  }
}

// The states after it are those of single steps.
TEST_P(DecodeBatches, StatesAreThoseOfSteps) {
  DecodeBatch batch(*model, *pool, 2, *ctx);
  StatePool other(model->config(), kSlots, *ctx);
  std::vector<float> logits(static_cast<std::size_t>(2 * model->config().padded_vocab()));
  std::vector<DecodeRow> rows = {row(4), row(1)};
  for (const DecodeRow& each : rows) read_prompt(other, each.slot);
  for (int i = 0; i < 4; ++i) {
    const std::int32_t ids[] = {rows[0].id, rows[1].id}, slots[] = {4, 1};
    model->step(ids, slots, other, {logits.data(), {2, model->config().padded_vocab()}}, *ctx);
    const auto tokens = batch.step(rows);
    for (int k = 0; k < 2; ++k) {
      rows[k].id = tokens[k].id;
      ++rows[k].position;
    }
  }
  for (const std::int32_t slot : {4, 1}) {
    EXPECT_EQ(pool->export_slot(slot, 1).serialize(), other.export_slot(slot, 1).serialize());
  }
}

// A broken state stops its own sequence, step after step, and no other.
TEST_P(DecodeBatches, NanStopsOneSequenceAndNotItsNeighbours) {
  SequenceState broken = pool->export_slot(2, 1);
  const std::int64_t last_layer = broken.layers() - 1;
  broken.parts(last_layer).ssm[3] = std::numeric_limits<float>::quiet_NaN();
  pool->import_slot(2, broken);
  DecodeBatch batch(*model, *pool, kSlots, *ctx);
  std::vector<DecodeRow> rows = {row(1), row(2), row(4)};
  std::vector<std::int32_t> first, third;
  for (int i = 0; i < 6; ++i) {
    const auto tokens = batch.step(rows);
    EXPECT_EQ(tokens[1].status, SampleStatus::kNotFinite) << i;
    EXPECT_EQ(tokens[1].id, -1);
    first.push_back(tokens[0].id);
    third.push_back(tokens[2].id);
    for (std::size_t k = 0; k < rows.size(); ++k) {
      rows[k].id = std::max(tokens[k].id, 0);
      ++rows[k].position;
    }
  }
  EXPECT_EQ(first, alone(row(1), 6));
  EXPECT_EQ(third, alone(row(4), 6));
}

TEST_P(DecodeBatches, RefusesRowsThatCannotBeAndGoesOn) {
  DecodeBatch batch(*model, *pool, 2, *ctx);
  EXPECT_TRUE(batch.step({}).empty());
  const auto refuse = [&](std::vector<DecodeRow> rows) { EXPECT_THROW(batch.step(rows), Error); };
  refuse({row(0), row(1), row(2)});
  refuse({row(1), row(1)});
  DecodeRow bad = row(0);
  bad.slot = kSlots;
  refuse({bad});
  for (const std::int64_t id : {std::int64_t{-1}, model->config().padded_vocab()}) {
    bad = row(0);
    bad.id = static_cast<std::int32_t>(id);
    refuse({bad});
  }
  bad = row(0);
  bad.sampling.repeat_penalty = 1.1f;
  refuse({bad});
  bad = row(0);
  bad.sampling.top_p = 0;
  refuse({bad});
  const DecodeRow good = row(3);
  EXPECT_EQ(batch.step({&good, 1})[0].id, alone(good, 1)[0]);
  EXPECT_THROW(DecodeBatch(*model, *pool, kSlots + 1, *ctx), Error);
  EXPECT_THROW(DecodeBatch(*model, *pool, 0, *ctx), Error);
}

std::vector<Place> places() {
  std::vector<Place> out;
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (int tiny = 0; tiny < 3; ++tiny) out.push_back({kind, tiny});
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Devices, DecodeBatches, testing::ValuesIn(places()),
                         [](const auto& place) {
                           const bool gpu = place.param.kind == DeviceKind::kCuda;
                           return (gpu ? "Cuda_" : "Cpu_") + tiny_models()[place.param.tiny].name;
                         });

}  // namespace
}  // namespace mamba3
