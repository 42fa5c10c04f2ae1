#include "mamba3/model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "mamba3/error.h"
#include "model/init.h"
#include "model/reference.h"
#include "tiny_models.h"

namespace mamba3 {
namespace {

constexpr std::uint64_t kSeed = 7;

class ModelTest : public testing::TestWithParam<int> {
 protected:
  ModelTest()
      : config(tiny_models()[GetParam()].config),
        model(Model::random(config, DType::kF32, kSeed, {}, ctx)) {}

  std::vector<float> last_logits(StatePool& pool, std::int32_t slot,
                                 std::span<const std::int32_t> ids) {
    std::vector<float> out(config.padded_vocab());
    const std::int64_t cu[] = {0, static_cast<std::int64_t>(ids.size())};
    const std::int32_t slots[] = {slot};
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu;
    args.slots = slots;
    args.last_logits = {out.data(), {1, config.padded_vocab()}};
    model->prefill(args, pool, ctx);
    return out;
  }

  // All logits of packed sequences, [t, padded v].
  std::vector<float> all_logits(StatePool& pool, const std::vector<std::int32_t>& ids,
                                const std::vector<std::int64_t>& cu,
                                const std::vector<std::int32_t>& slots, Context& with) {
    std::vector<std::int64_t> wanted;
    for (std::size_t i = 0; i < ids.size(); ++i) wanted.push_back(static_cast<std::int64_t>(i));
    std::vector<float> out(ids.size() * config.padded_vocab());
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu;
    args.slots = slots;
    args.logit_tokens = wanted;
    args.on_logits = [&](std::span<const std::int64_t> which, TensorView<const float, 2> logits) {
      for (std::size_t i = 0; i < which.size(); ++i) {
        std::copy_n(&logits(static_cast<std::int64_t>(i), 0), config.padded_vocab(),
                    out.data() + which[i] * config.padded_vocab());
      }
    };
    model->prefill(args, pool, with);
    return out;
  }

  Context ctx{ContextOptions{2, 0, {}}};
  ModelConfig config;
  std::shared_ptr<const Model> model;
};

std::vector<std::byte> bytes_of(const StatePool& pool, std::int32_t slot) {
  return pool.export_slot(slot, 1).serialize();
}

double largest_difference(const std::vector<float>& a, const std::vector<double>& b) {
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(a[i] - b[i]));
    scale = std::max(scale, std::abs(b[i]));
  }
  return worst / scale;
}

TEST_P(ModelTest, PrefillAndStepsAgreeWithTheReference) {
  const auto ids = random_ids(150, config.vocab, 3);
  const InitialTensors tensors = init_tensors(config, DType::kF32, kSeed, ctx);
  const std::vector<double> truth = reference_logits(config, tensors.tensors, ids);
  StatePool pool(config, 2, ctx);
  const auto prefill = all_logits(pool, ids, {0, 150}, {0}, ctx);
  EXPECT_LT(largest_difference(prefill, truth), 2e-5);

  std::vector<float> steps(prefill.size());
  const std::int32_t slot[] = {1};
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const std::int32_t id[] = {ids[t]};
    const TensorView<float, 2> row(steps.data() + t * config.padded_vocab(),
                                   {1, config.padded_vocab()});
    model->step(id, slot, pool, row, ctx);
  }
  EXPECT_LT(largest_difference(steps, truth), 2e-5);
  EXPECT_EQ(pool.position(0), 150);
  EXPECT_EQ(pool.position(1), 150);
}

TEST_P(ModelTest, CutsOnTheChunkGridChangeNoBitAndOthersLittle) {
  const auto ids = random_ids(200, config.vocab, 5);
  const std::span<const std::int32_t> all(ids);
  StatePool pool(config, 2, ctx);
  const auto whole = last_logits(pool, 0, all);
  for (const std::int64_t cut : {1, 63, 64, 65, 128, 192, 199}) {
    pool.reset(1);
    last_logits(pool, 1, all.first(cut));
    const auto parts = last_logits(pool, 1, all.subspan(cut));
    if (cut % 64 == 0) {
      EXPECT_EQ(whole, parts) << "cut " << cut;
      EXPECT_EQ(bytes_of(pool, 0), bytes_of(pool, 1)) << "cut " << cut;
    } else {
      EXPECT_LT(largest_difference(parts, {whole.begin(), whole.end()}), 2e-5) << "cut " << cut;
    }
  }
}

TEST_P(ModelTest, PackingAndThreadsChangeNoBit) {
  const auto ids = random_ids(280, config.vocab, 9);
  const std::vector<std::int64_t> cu = {0, 7, 7, 140, 280};
  StatePool packed(config, 4, ctx), separate(config, 4, ctx);
  const auto together = all_logits(packed, ids, cu, {3, 0, 1, 2}, ctx);
  Context one(ContextOptions{1, 0, {}}), three(ContextOptions{3, 0, {}});
  std::vector<float> apart;
  const std::int32_t slots[] = {3, 0, 1, 2};
  for (int q = 0; q < 4; ++q) {
    const std::vector<std::int32_t> part(ids.begin() + cu[q], ids.begin() + cu[q + 1]);
    const auto rows =
        all_logits(separate, part, {0, cu[q + 1] - cu[q]}, {slots[q]}, q % 2 == 0 ? one : three);
    apart.insert(apart.end(), rows.begin(), rows.end());
  }
  EXPECT_EQ(together, apart);
  for (std::int32_t slot = 0; slot < 4; ++slot)
    EXPECT_EQ(bytes_of(packed, slot), bytes_of(separate, slot));
}

TEST_P(ModelTest, BatchNeighboursChangeNoBitOfAStep) {
  const auto ids = random_ids(40, config.vocab, 11);
  StatePool pool(config, 40, ctx);
  std::vector<std::int32_t> slots;
  for (std::int32_t i = 0; i < 40; ++i) slots.push_back((i * 7) % 40);
  std::vector<float> together(40 * config.padded_vocab());
  for (int round = 0; round < 2; ++round) {
    model->step(ids, slots, pool, {together.data(), {40, config.padded_vocab()}}, ctx);
  }
  for (const int i : {0, 17, 39}) {
    StatePool alone(config, 1, ctx);
    std::vector<float> row(config.padded_vocab());
    const std::int32_t id[] = {ids[i]}, slot[] = {0};
    for (int round = 0; round < 2; ++round)
      model->step(id, slot, alone, {row.data(), {1, config.padded_vocab()}}, ctx);
    EXPECT_EQ(0, std::memcmp(row.data(), together.data() + i * config.padded_vocab(),
                             row.size() * sizeof(float)));
    EXPECT_EQ(bytes_of(alone, 0), bytes_of(pool, slots[i]));
  }
}

TEST_P(ModelTest, ForkSaveAndContinueIsBitwise) {
  const auto ids = random_ids(90, config.vocab, 13);
  StatePool pool(config, 3, ctx);
  last_logits(pool, 0, ids);
  pool.fork(0, 1);
  const SequenceState saved = pool.export_slot(0, model->fingerprint());
  const auto restored =
      SequenceState::deserialize(saved.serialize(), config, model->fingerprint(), "memory");
  pool.import_slot(2, restored);
  const std::int32_t id[] = {5};
  std::vector<std::vector<float>> rows;
  for (const std::int32_t i : {0, 1, 2}) {
    const std::int32_t slot[] = {i};
    rows.emplace_back(config.padded_vocab());
    model->step(id, slot, pool, {rows.back().data(), {1, config.padded_vocab()}}, ctx);
    EXPECT_EQ(pool.position(i), 91);
  }
  EXPECT_EQ(rows[0], rows[1]);
  EXPECT_EQ(rows[0], rows[2]);
  EXPECT_EQ(bytes_of(pool, 0), bytes_of(pool, 2));
}

TEST_P(ModelTest, Bf16ComputeStaysNear) {
  const auto narrow = Model::random(config, DType::kF32, kSeed, {ComputeDType::kBf16, false}, ctx);
  const auto ids = random_ids(70, config.vocab, 17);
  StatePool pool(config, 1, ctx);
  const auto exact = last_logits(pool, 0, ids);
  model = narrow;
  pool.reset(0);
  const auto rounded = last_logits(pool, 0, ids);
  EXPECT_NE(exact, rounded);
  EXPECT_LT(largest_difference(rounded, {exact.begin(), exact.end()}), 0.05);
}

TEST_P(ModelTest, RefusesWhatItCannotRead) {
  StatePool pool(config, 2, ctx);
  std::vector<float> logits(2 * config.padded_vocab());
  const TensorView<float, 2> out(logits.data(), {2, config.padded_vocab()});
  const std::vector<std::int32_t> outside = {1, static_cast<std::int32_t>(config.padded_vocab())};
  const std::vector<std::int32_t> negative = {-1};
  EXPECT_THROW(last_logits(pool, 0, outside), Error);
  EXPECT_THROW(last_logits(pool, 0, negative), Error);
  EXPECT_THROW(last_logits(pool, 2, std::vector<std::int32_t>{1}), Error);
  const std::int32_t ids[] = {1, 2}, same[] = {1, 1};
  EXPECT_THROW(model->step(ids, same, pool, out, ctx), Error);
  const std::int64_t cu[] = {0, 2};
  const std::int32_t slot[] = {0};
  for (const std::vector<std::int64_t>& wanted :
       {std::vector<std::int64_t>{1, 0}, {0, 0}, {-1, 1}, {1, 2}}) {
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = cu;
    args.slots = slot;
    args.logit_tokens = wanted;
    args.on_logits = [](auto, auto) {};
    EXPECT_THROW(model->prefill(args, pool, ctx), Error);
  }
  // Logits of another shape, or none, before any state moves on.
  const std::int32_t slots[] = {0, 1};
  const std::int64_t v = config.padded_vocab(), both[] = {0, 1, 2};
  for (const auto& wrong :
       {TensorView<float, 2>(logits.data(), {1, v}),
        TensorView<float, 2>(logits.data(), {2, v - 1}), TensorView<float, 2>(nullptr, {2, v})}) {
    EXPECT_THROW(model->step(ids, slots, pool, wrong, ctx), Error);
    if (wrong.data == nullptr) continue;
    PrefillArgs args;
    args.ids = ids;
    args.cu_seqlens = both;
    args.slots = slots;
    args.last_logits = wrong;
    EXPECT_THROW(model->prefill(args, pool, ctx), Error);
  }
  EXPECT_EQ(pool.position(0), 0);
}

TEST_P(ModelTest, RefusesStatesOfAnotherModel) {
  const ModelConfig other = tiny_models()[(GetParam() + 1) % 3].config;
  StatePool pool(config, 1, ctx), others(other, 1, ctx);
  EXPECT_THROW(last_logits(others, 0, std::vector<std::int32_t>{1}), Error);
  const SequenceState of_other(other, 1);
  EXPECT_THROW(pool.import_slot(0, of_other), Error);
  EXPECT_THROW(pool.import_slot(0, SequenceState()), Error);
  SequenceState own(config, 1);
  EXPECT_NO_THROW(pool.import_slot(0, own));
  const SequenceState taken = std::move(own);
  EXPECT_TRUE(own.empty());
  EXPECT_THROW(pool.import_slot(0, own), Error);
  EXPECT_THROW(own.export_layer(0), Error);
  ModelConfig nothing = config;
  nothing.mixer.head_dim = 0;
  EXPECT_THROW(SequenceState(nothing, 1), Error);
  EXPECT_THROW(StatePool(nothing, 1, ctx), Error);
  EXPECT_THROW(StatePool(config, std::int64_t{1} << 62, ctx), Error);
}

INSTANTIATE_TEST_SUITE_P(Tiny, ModelTest, testing::Values(0, 1, 2),
                         [](const auto& tiny) { return tiny_models()[tiny.param].name; });

}  // namespace
}  // namespace mamba3
