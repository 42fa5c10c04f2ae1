// mamba3_step with a ring of deferred tokens against the oracle, the plain step and itself. Skipped
// where there is no GPU that has it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/tolerance.h"
#include "ring_case.h"

namespace mamba3 {
namespace {

using testing::all;
using testing::describe;
using testing::on_gpu;
using testing::Random;
using testing::ring_dims;
using testing::RingSlots;
using testing::ScanCase;
using testing::widen;

#define SKIP_WITHOUT_RINGS(ctx) \
  if (!mamba3_ring_fits(ring_dims()[0], *(ctx).gpu())) GTEST_SKIP() << "no card with rings"

void expect_near(const char* name, const std::vector<float>& got, const std::vector<float>& naive,
                 const std::vector<double>& truth) {
  const Comparison c = compare(all(got), all(naive), all(truth), kFloatRounding);
  EXPECT_TRUE(c.ok) << name << ": error " << c.error << ", naive " << c.naive_error << ", bound "
                    << c.bound;
}

// One sequence, from its start: the truth, and the plain run.
struct Oracle {
  Mamba3RefState<double> state;
  Mamba3RefState<float> naive_state;
  std::vector<double> y;
  std::vector<float> naive_y;

  Oracle(const Mamba3RefInputs<float>& in, const Mamba3RefState<float>& start)
      : state(widen(start)), naive_state(start) {
    y = mamba3_scan_ref(widen(in), state);
    naive_y = mamba3_scan_ref(in, naive_state);
  }
  void expect_state(const Mamba3RefState<float>& got) const {
    expect_near("ssm", got.ssm, naive_state.ssm, state.ssm);
    expect_near("k", got.k, naive_state.k, state.k);
    EXPECT_TRUE(::mamba3::same_bits(got.v, naive_state.v));
  }
};

// Rows of one sequence.
std::vector<float> row_of(const std::vector<float>& y, std::size_t row, std::size_t rows) {
  const std::size_t width = y.size() / rows;
  return {y.begin() + static_cast<std::ptrdiff_t>(row * width),
          y.begin() + static_cast<std::ptrdiff_t>((row + 1) * width)};
}

struct RingRun {
  std::vector<std::vector<float>> y;  // [sequence]
  std::vector<Mamba3RefState<float>> states;
  std::vector<std::vector<std::uint32_t>> turns;
  bool clean = true;
};

// Sequences `which` side by side, then their canonical states.
RingRun run_ring(const ScanCase& data, const std::vector<std::size_t>& which,
                 const std::vector<std::int32_t>& slots, std::int64_t ring_tokens, bool stagger,
                 Context& ctx) {
  RingSlots pool(data.inputs[0], 1 + *std::max_element(slots.begin(), slots.end()), ring_tokens,
                 stagger, ctx);
  std::vector<const Mamba3RefInputs<float>*> inputs;
  RingRun out;
  out.y.resize(which.size());
  for (std::size_t i = 0; i < which.size(); ++i) {
    pool.start(slots[i], data.starts[which[i]]);
    inputs.push_back(&data.inputs[which[i]]);
  }
  for (std::int64_t t = 0; t < inputs[0]->tokens; ++t) {
    const auto y = pool.step(inputs, std::vector<std::int64_t>(which.size(), t), slots);
    for (std::size_t i = 0; i < which.size(); ++i) {
      const auto row = row_of(y, i, which.size());
      out.y[i].insert(out.y[i].end(), row.begin(), row.end());
    }
  }
  if (ring_tokens > 0) pool.settle(slots);
  const testing::Slots& states = pool.fetch();
  for (const std::int32_t slot : slots) {
    out.states.push_back(states.get(slot));
    out.turns.push_back(pool.turns(slot));
  }
  out.clean = states.padding_is_untouched();
  return out;
}

void expect_same(const RingRun& a, std::size_t i, const RingRun& b, std::size_t j) {
  EXPECT_TRUE(same_bits(a.y[i], b.y[j]));
  EXPECT_TRUE(same_bits(a.states[i].ssm, b.states[j].ssm));
  EXPECT_TRUE(same_bits(a.states[i].k, b.states[j].k));
  EXPECT_TRUE(same_bits(a.states[i].v, b.states[j].v));
  EXPECT_EQ(a.turns[i], b.turns[j]);
}

class CudaRing : public ::testing::TestWithParam<Mamba3Dims> {};

// More than two periods, and a settle at every place of a period.
TEST_P(CudaRing, AgreesWithTheOracle) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  for (const std::int64_t tokens : {1, 2, 7, 8, 9, 16, 17, 18, 37}) {
    const ScanCase data(GetParam(), std::vector<std::int64_t>(3, tokens), 31);
    const RingRun plain = run_ring(data, {0, 1, 2}, {2, 0, 3}, 0, false, ctx);
    std::vector<Oracle> oracles;
    for (std::size_t i = 0; i < 3; ++i) oracles.emplace_back(data.inputs[i], data.starts[i]);
    for (const std::int64_t ring : {1, 8, 16}) {
      for (const bool stagger : {false, true}) {
        SCOPED_TRACE(std::to_string(tokens) + " tokens, ring " + std::to_string(ring) +
                     (stagger ? ", staggered" : ""));
        const RingRun got = run_ring(data, {0, 1, 2}, {2, 0, 3}, ring, stagger, ctx);
        EXPECT_TRUE(got.clean);
        for (std::size_t i = 0; i < 3; ++i) {
          expect_near("y", got.y[i], oracles[i].naive_y, oracles[i].y);
          oracles[i].expect_state(got.states[i]);
          // Phases and K are those of the plain step, bit for bit.
          EXPECT_EQ(got.turns[i], plain.turns[i]);
          EXPECT_TRUE(same_bits(got.states[i].k, plain.states[i].k));
        }
      }
    }
  }
}

TEST_P(CudaRing, SlotAndNeighboursChangeNoBit) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  const ScanCase data(GetParam(), {21, 21, 21, 21}, 32);
  for (const std::int64_t ring : {1, 8}) {
    const RingRun together = run_ring(data, {0, 1, 2, 3}, {3, 0, 4, 1}, ring, false, ctx);
    for (std::size_t i = 0; i < 4; ++i) {
      expect_same(run_ring(data, {i}, {2}, ring, false, ctx), 0, together, i);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaRing, ::testing::ValuesIn(ring_dims()),
                         [](const auto& p) { return describe(p.param); });

// Blocks that walk many items of several sequences, which fold at the same or, staggered, at
// different tokens, compute what blocks with a single one do. 45 rows are shared out across rows,
// 64 so that no block has parts of two.
void expect_alone_as_together(const Mamba3Dims& dims, std::size_t rows, Context& ctx) {
  SCOPED_TRACE(describe(dims) + ", " + std::to_string(rows) + " rows");
  const ScanCase data(dims, std::vector<std::int64_t>(rows, 11), 33);
  std::vector<std::size_t> which(rows);
  std::vector<std::int32_t> slots(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    which[i] = i;
    slots[i] = static_cast<std::int32_t>((7 * i + 2) % rows);
  }
  for (const std::int64_t ring : {1, 8}) {
    for (const bool stagger : {false, true}) {
      const RingRun together = run_ring(data, which, slots, ring, stagger, ctx);
      for (const std::size_t i : {std::size_t{0}, std::size_t{1}, rows / 2, rows - 1}) {
        const std::int32_t slot = stagger ? slots[i] : 0;
        expect_same(run_ring(data, {i}, {slot}, ring, stagger, ctx), 0, together, i);
      }
    }
  }
}

TEST(CudaRingBatch, SizeChangesNoBit) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  for (const int shape : {0, 1, 5, 7}) {
    Mamba3Dims dims = ring_dims()[shape];
    dims.heads *= 12;
    expect_alone_as_together(dims, 45, ctx);
  }
  for (const int shape : {0, 2}) {
    Mamba3Dims dims = ring_dims()[shape];
    dims.heads = 32;
    expect_alone_as_together(dims, 64, ctx);
  }
}

// y in bf16 is y in fp32, rounded once; in blocks of one item and in blocks that walk.
TEST(CudaRingBatch, RoundsItsOutput) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  const Mamba3Dims dims = ring_dims()[1];
  for (const std::int32_t rows : {1, 80}) {
    const ScanCase data(dims, {10}, 38);
    RingSlots plain(data.inputs[0], rows, 8, false, ctx),
        rounding(data.inputs[0], rows, 8, false, ctx);
    std::vector<std::int32_t> slots(rows);
    for (std::int32_t i = 0; i < rows; ++i) {
      slots[i] = i;
      plain.start(i, data.starts[0]);
      rounding.start(i, data.starts[0]);
    }
    const std::vector<const Mamba3RefInputs<float>*> inputs(rows, &data.inputs[0]);
    for (std::int64_t t = 0; t < 10; ++t) {
      const std::vector<std::int64_t> tokens(rows, t);
      std::vector<float> want = plain.step(inputs, tokens, slots), got;
      for (float& value : want) value = to_float(to_bf16(value));
      for (const Bf16 value : rounding.step<Bf16>(inputs, tokens, slots)) {
        got.push_back(to_float(value));
      }
      EXPECT_TRUE(same_bits(got, want)) << rows << " rows, token " << t;
    }
  }
}

// A sequence in a slot: the tokens that it has read, of one long sequence of inputs.
struct History {
  std::size_t start = 0;
  std::vector<std::int64_t> tokens;
};

// Slots that settle, fork, go back and begin anew at random hold what their tokens say.
class Shuffle {
 public:
  Shuffle(const Mamba3Dims& dims, std::int64_t ring, bool stagger, std::uint64_t seed, Context& ctx)
      : data_(dims, {kPoolTokens, 1, 1, 1}, seed),
        random_(seed),
        pool_(data_.inputs[0], kSlots, ring, stagger, ctx) {
    for (std::int32_t slot = 0; slot < kSlots; ++slot) begin(slot);
  }

  void act() {
    const auto slot = static_cast<std::int32_t>(random_.below(kSlots));
    switch (random_.below(8)) {
      case 0:
        pool_.settle({slot});
        return check(slot);
      case 1: {
        const auto to = static_cast<std::int32_t>(random_.below(kSlots));
        if (to == slot) return;
        pool_.poison_ring(to);
        pool_.fork(slot, to);
        histories_[to] = histories_[slot];
        return;
      }
      case 2: {
        const auto count = static_cast<std::int64_t>(pool_.cursor(slot).count);
        if (count < 2) return;
        const std::int64_t drop = 1 + random_.below(count - 1);
        pool_.roll_back(slot, static_cast<std::int32_t>(drop));
        histories_[slot].tokens.resize(histories_[slot].tokens.size() - drop);
        return;
      }
      case 3:
        if (random_.below(3) == 0) begin(slot);
        return;
      default:
        step();
    }
  }
  void check_all() {
    for (std::int32_t slot = 0; slot < kSlots; ++slot) {
      if (histories_[slot].tokens.empty()) continue;
      pool_.settle({slot});
      check(slot);
    }
  }

 private:
  static constexpr std::int64_t kPoolTokens = 12;
  static constexpr std::int32_t kSlots = 4;

  void begin(std::int32_t slot) {
    histories_[slot] = {static_cast<std::size_t>(random_.below(4)), {}};
    pool_.start(slot, data_.starts[histories_[slot].start]);
    if (random_.below(2) == 0) pool_.poison_ring(slot);
  }

  // A few tokens of some of the slots.
  void step() {
    std::vector<std::int32_t> slots;
    for (std::int32_t slot = 0; slot < kSlots; ++slot) {
      if (random_.below(3) != 0) slots.push_back(slot);
    }
    if (slots.empty()) return;
    for (std::int64_t n = random_.below(6); n >= 0; --n) {
      std::vector<std::int64_t> tokens;
      for (const std::int32_t slot : slots) {
        tokens.push_back(random_.below(kPoolTokens));
        histories_[slot].tokens.push_back(tokens.back());
      }
      const std::vector<const Mamba3RefInputs<float>*> inputs(slots.size(), &data_.inputs[0]);
      const auto y = pool_.step(inputs, tokens, slots);
      for (std::size_t i = 0; i < slots.size(); ++i) last_y_[slots[i]] = row_of(y, i, slots.size());
    }
    check_y(
        slots[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(slots.size())))]);
  }

  Oracle oracle(const History& history) const {
    const Mamba3RefInputs<float>& from = data_.inputs[0];
    Mamba3RefInputs<float> in = from;
    in.tokens = static_cast<std::int64_t>(history.tokens.size());
    const auto take = [&](const std::vector<float>& part, std::vector<float>& out) {
      const auto width = static_cast<std::int64_t>(part.size()) / from.tokens;
      out.clear();
      for (const std::int64_t t : history.tokens) {
        out.insert(out.end(), part.begin() + t * width, part.begin() + (t + 1) * width);
      }
    };
    take(from.x, in.x);
    take(from.z, in.z);
    take(from.in_b, in.in_b);
    take(from.out_c, in.out_c);
    take(from.dt_raw, in.dt_raw);
    take(from.decay_raw, in.decay_raw);
    take(from.trap_raw, in.trap_raw);
    take(from.angle_raw, in.angle_raw);
    return Oracle(in, data_.starts[history.start]);
  }
  void check(std::int32_t slot) {
    if (histories_[slot].tokens.empty()) return;
    oracle(histories_[slot]).expect_state(pool_.fetch().get(slot));
  }
  void check_y(std::int32_t slot) {
    const Oracle want = oracle(histories_[slot]);
    const std::size_t width = last_y_[slot].size();
    const auto last = [width](const auto& y) {
      return std::remove_cvref_t<decltype(y)>(y.end() - static_cast<std::ptrdiff_t>(width),
                                              y.end());
    };
    expect_near("y", last_y_[slot], last(want.naive_y), last(want.y));
  }

  ScanCase data_;
  Random random_;
  RingSlots pool_;
  History histories_[kSlots];
  std::vector<float> last_y_[kSlots];
};

TEST(CudaRingShuffle, SettlesForksAndRollBacksAgreeWithTheOracle) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  std::uint64_t seed = 40;
  for (const int shape : {5, 7}) {
    for (const std::int64_t ring : {1, 3, 8, 16}) {
      for (const bool stagger : {false, true}) {
        SCOPED_TRACE("shape " + std::to_string(shape) + ", ring " + std::to_string(ring));
        Shuffle shuffle(ring_dims()[shape], ring, stagger, ++seed, ctx);
        for (int i = 0; i < 40; ++i) shuffle.act();
        shuffle.check_all();
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

// A roll-back and the same tokens again give the bits that there were.
TEST(CudaRingShuffle, RolledBackTokensComeAgainBitwise) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  const ScanCase data(ring_dims()[1], {20}, 34);
  RingSlots pool(data.inputs[0], 1, 8, false, ctx);
  pool.start(0, data.starts[0]);
  for (std::int64_t t = 0; t < 13; ++t) pool.step({&data.inputs[0]}, {t}, {0});
  std::vector<std::vector<float>> first, again;
  for (std::int64_t t = 13; t < 16; ++t) first.push_back(pool.step({&data.inputs[0]}, {t}, {0}));
  EXPECT_EQ(pool.cursor(0).count, 8u);
  pool.roll_back(0, 3);
  EXPECT_EQ(pool.cursor(0).count, 5u);
  for (std::int64_t t = 13; t < 16; ++t) again.push_back(pool.step({&data.inputs[0]}, {t}, {0}));
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(first[i], again[i]));
  pool.roll_back(0, 100);
  EXPECT_EQ(pool.cursor(0).count, 1u);
}

TEST(CudaRingPhases, ANanAngleShowsAsInThePlainStep) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  ScanCase data(ring_dims()[0], {12}, 35);
  data.inputs[0].angle_raw[5 * 32 + 4] = testing::kNan;
  const RingRun want = run_ring(data, {0}, {0}, 0, false, ctx);
  for (const std::int64_t ring : {1, 8}) {
    const RingRun got = run_ring(data, {0}, {0}, ring, false, ctx);
    EXPECT_EQ(got.turns[0], want.turns[0]);
    for (std::size_t i = 0; i < want.y[0].size(); ++i) {
      ASSERT_TRUE(same_kind(got.y[0][i], want.y[0][i])) << i;
    }
    for (std::size_t i = 0; i < want.states[0].ssm.size(); ++i) {
      ASSERT_TRUE(same_kind(got.states[0].ssm[i], want.states[0].ssm[i])) << i;
    }
  }
}

// Strong decays beside weak ones: neither underflow nor lost digits.
TEST(CudaRingDecays, StrongOnesTakeNothingFromWeakOnes) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  ScanCase data(ring_dims()[1], {24}, 36);
  Mamba3RefInputs<float>& in = data.inputs[0];
  for (std::int64_t t = 0; t < 24; ++t) {
    for (std::int64_t h = 0; h < 5; ++h) {
      in.decay_raw[t * 5 + h] = t % 5 == h ? 1e6f : -1e3f;
      if (h == 4) in.decay_raw[t * 5 + h] = -1e9f;  // below the floor: nothing decays
    }
  }
  const Oracle oracle(in, data.starts[0]);
  for (const std::int64_t ring : {1, 8, 16}) {
    const RingRun got = run_ring(data, {0}, {0}, ring, false, ctx);
    expect_near("y", got.y[0], oracle.naive_y, oracle.y);
    oracle.expect_state(got.states[0]);
  }
}

// One sequence through its whole length.
RingRun run_long(const ScanCase& data, std::int64_t ring_tokens, Context& ctx) {
  RingSlots pool(data.inputs[0], 1, ring_tokens, false, ctx);
  pool.start(0, data.starts[0]);
  RingRun out;
  out.y.push_back(pool.run(data.inputs[0], 0));
  if (ring_tokens > 0) pool.settle({0});
  out.states.push_back(pool.fetch().get(0));
  out.turns.push_back(pool.turns(0));
  return out;
}

// `got` lies no farther from `other` than the truth lets both of them be.
void expect_alike(const char* name, const std::vector<float>& got, const std::vector<float>& other,
                  const std::vector<float>& naive, const std::vector<double>& truth) {
  const double naive_error = largest_error(all(naive), all(truth), ErrorMetric::kRelative);
  const Comparison c = judge(largest_error(all(got), all(other), ErrorMetric::kRelative),
                             naive_error, kFloatRounding);
  EXPECT_TRUE(c.ok) << name << ": apart by " << c.error << ", bound " << c.bound;
}

// Rings of 8 and 16 give what a ring of 1 gives, which writes every state: phases and K bit for
// bit, sums within their roundings, after 32,768 tokens as after a few.
void expect_no_drift(Mamba3Dims dims) {
  constexpr std::int64_t kTokens = 32768;
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  dims.heads = dims.groups = 1;
  ScanCase data(dims, {kTokens}, 37);
  for (float& v : data.inputs[0].dt_raw) v -= 4;  // long horizons
  const Oracle oracle(data.inputs[0], data.starts[0]);
  const RingRun plain = run_long(data, 0, ctx);
  const RingRun anchor = run_long(data, 1, ctx);
  for (const std::int64_t ring : {1, 8, 16}) {
    SCOPED_TRACE(describe(dims) + ", ring " + std::to_string(ring));
    const RingRun got = ring == 1 ? anchor : run_long(data, ring, ctx);
    EXPECT_EQ(got.turns[0], plain.turns[0]);
    EXPECT_TRUE(same_bits(got.states[0].k, plain.states[0].k));
    expect_near("y", got.y[0], oracle.naive_y, oracle.y);
    oracle.expect_state(got.states[0]);
    expect_alike("y", got.y[0], anchor.y[0], oracle.naive_y, oracle.y);
    expect_alike("ssm", got.states[0].ssm, anchor.states[0].ssm, oracle.naive_state.ssm,
                 oracle.state.ssm);
  }
}

TEST(CudaRingLongRun, SisoDoesNotDrift) {
  SKIP_WITHOUT_GPU();
  expect_no_drift(ring_dims()[0]);
}

TEST(CudaRingLongRun, MimoDoesNotDrift) {
  SKIP_WITHOUT_GPU();
  expect_no_drift(ring_dims()[7]);
}

TEST(CudaRingLimits, RefusesWhatItCannotDo) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  SKIP_WITHOUT_RINGS(ctx);
  Mamba3Dims dims = ring_dims()[0];
  for (const std::int64_t p : {63, 128}) {
    dims.head_dim = p;
    EXPECT_FALSE(mamba3_ring_fits(dims, *ctx.gpu()));
  }
  dims = ring_dims()[0];
  dims.out_norm = true;
  EXPECT_FALSE(mamba3_ring_fits(dims, *ctx.gpu()));
  dims = ring_dims()[0];
  Mamba3Ring none;
  EXPECT_THROW(mamba3_ring_advance({none, {}}, *ctx.gpu()), Error);
}

}  // namespace
}  // namespace mamba3
