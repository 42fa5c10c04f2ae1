// The ring of deferred tokens without a GPU: its algebra, its cursors, its memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/tolerance.h"
#include "op_test_helpers.h"
#include "ops/mamba3_common/mamba3_ring.h"
#include "ops/mamba3_step/mamba3_ring_ops.h"
#include "ops/mamba3_step/mamba3_step.h"
#include "ring_oracle.h"
#include "scan_case.h"

namespace mamba3 {
namespace {

using testing::RingOracle;
using testing::ScanCase;
using testing::widen;

// A double's roundings over a few tokens.
constexpr double kExact = 1e-11;

Mamba3Dims small_dims(bool mimo) {
  Mamba3Dims d;
  d.heads = 4;
  d.head_dim = 3;
  d.state = 10;
  d.groups = 2;
  d.rank = mimo ? 3 : 1;
  d.angles = 4;
  d.mimo = mimo;
  return d;
}

double error(const std::vector<double>& got, const std::vector<double>& want) {
  return largest_error(std::span<const double>(got), std::span<const double>(want),
                       ErrorMetric::kRelative);
}

void expect_state(const Mamba3RefState<double>& got, const Mamba3RefState<double>& want) {
  EXPECT_LT(error(got.ssm, want.ssm), kExact);
  EXPECT_LT(error(got.k, want.k), kExact);
  EXPECT_LT(error(got.angle, want.angle), kExact);
  EXPECT_EQ(got.v, want.v);
}

TEST(RingAlgebra, EqualsTheRecurrenceAtEveryLength) {
  for (const bool mimo : {false, true}) {
    for (std::int64_t tokens = 1; tokens <= 12; ++tokens) {
      const ScanCase data(small_dims(mimo), {tokens}, 51);
      const Mamba3RefInputs<double> in = widen(data.inputs[0]);
      Mamba3RefState<double> want = widen(data.starts[0]);
      const std::vector<double> want_y = mamba3_scan_ref(in, want);
      for (const std::int64_t ring : {1, 2, 5, 8}) {
        SCOPED_TRACE(std::to_string(tokens) + " tokens, ring " + std::to_string(ring));
        RingOracle oracle(in, widen(data.starts[0]), ring);
        std::vector<double> y;
        for (std::int64_t t = 0; t < tokens; ++t) {
          const auto row = oracle.step(t);
          y.insert(y.end(), row.begin(), row.end());
        }
        EXPECT_LT(error(y, want_y), kExact);
        expect_state(oracle.settle(), want);
      }
    }
  }
}

// Settled in the middle, and rolled back over tokens that are then read again.
TEST(RingAlgebra, SettlesAndRollBacksChangeNothing) {
  const ScanCase data(small_dims(true), {14}, 52);
  const Mamba3RefInputs<double> in = widen(data.inputs[0]);
  Mamba3RefState<double> want = widen(data.starts[0]);
  mamba3_scan_ref(in, want);
  for (std::int64_t settled = 0; settled < 14; ++settled) {
    RingOracle oracle(in, widen(data.starts[0]), 4);
    for (std::int64_t t = 0; t < 14; ++t) {
      oracle.step(t);
      const std::int64_t back = oracle.count() - 1;
      if (t < 13 && back > 0) {  // the next ones are wrong, and taken back
        const std::int64_t room = std::min<std::int64_t>(4 - oracle.count(), 13 - t);
        for (std::int64_t i = 0; i < room; ++i) oracle.step(13 - i);
        oracle.roll_back(room);
      }
      if (t == settled) oracle.settle();
    }
    expect_state(oracle.settle(), want);
  }
}

// What `count` tokens leave of a cursor, and at which of them the ring was folded.
std::vector<std::int64_t> folds(RingCursor at, std::uint32_t tokens, bool stagger,
                                std::uint32_t slot, std::int64_t count) {
  std::vector<std::int64_t> out;
  for (std::int64_t t = 0; t < count; ++t) {
    at = advanced_cursor(unpack_cursor(pack_cursor(at)), tokens, stagger, slot);
    if (at.count == 1) out.push_back(t);
    EXPECT_LE(at.count, tokens);
  }
  return out;
}

TEST(RingCursors, FoldAtEveryPeriod) {
  EXPECT_EQ(folds({}, 1, false, 0, 4), (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(folds({}, 8, false, 5, 20), (std::vector<std::int64_t>{0, 8, 16}));
  EXPECT_EQ(folds({}, 16, false, 3, 33), (std::vector<std::int64_t>{0, 16, 32}));
}

TEST(RingCursors, StaggeredSlotsFoldEvenly) {
  std::vector<int> at_token(64, 0);
  for (std::uint32_t slot = 0; slot < 16; ++slot) {
    const auto when = folds({}, 8, true, slot, 64);
    EXPECT_EQ(when[1], 8 - slot % 8);
    for (std::size_t i = 2; i < when.size(); ++i) EXPECT_EQ(when[i] - when[i - 1], 8);
    for (const std::int64_t t : when) ++at_token[t];
  }
  for (std::size_t t = 1; t < 64; ++t) EXPECT_EQ(at_token[t], 2) << t;
}

// What a fold reads and the entry that begins the next period never share a place.
TEST(RingCursors, TheNewEntryTakesAFreePlace) {
  for (const std::uint32_t tokens : {1u, 2u, 8u, 16u}) {
    RingCursor at;
    for (int t = 0; t < 100; ++t) {
      const RingCursor next = advanced_cursor(at, tokens, false, 0);
      const std::uint32_t fresh = ring_place(next, next.count - 1, tokens);
      EXPECT_LE(fresh, tokens);
      for (std::uint32_t entry = 0; entry < at.count; ++entry) {
        EXPECT_NE(ring_place(at, entry, tokens), fresh);
      }
      // Entries that stay are where they were.
      if (next.count > 1) {
        EXPECT_EQ(ring_place(next, 0, tokens), ring_place(at, 0, tokens));
      }
      at = next;
    }
  }
}

TEST(RingCursors, RollBackLeavesOne) {
  RingCursor at{5, 8, 1};
  EXPECT_EQ(rolled_back_cursor(at, 0).count, 5u);
  EXPECT_EQ(rolled_back_cursor(at, 4).count, 1u);
  EXPECT_EQ(rolled_back_cursor(at, 5).count, 1u);
  EXPECT_EQ(rolled_back_cursor(at, 3).parity, 1u);
  EXPECT_EQ(rolled_back_cursor(at, 3).limit, 8u);
  EXPECT_EQ(rolled_back_cursor({}, 3).count, 0u);
}

TEST(RingMemory, PartsLieOneBehindTheOther) {
  Mamba3Dims dims = small_dims(true);
  EXPECT_EQ(ring_bytes(dims, 0), 0);
  for (const std::int64_t tokens : {1, 8, 16}) {
    const std::int64_t bytes = ring_bytes(dims, tokens);
    EXPECT_EQ(bytes % 64, 0);
    std::vector<std::byte> memory(static_cast<std::size_t>(bytes));
    const Mamba3Ring ring = ring_views(dims, tokens, memory.data(), bytes);
    const auto at = [&](const void* part) {
      return static_cast<const std::byte*>(part) - memory.data();
    };
    EXPECT_GE(at(ring.half_tanh) - at(ring.in_b), (tokens + 1) * 2 * 3 * 10 * 4);
    EXPECT_GE(at(ring.scalars) - at(ring.half_tanh), (tokens + 1) * 4 * 8);
    EXPECT_GE(at(ring.x) - at(ring.scalars), 4 * tokens * 32);
    EXPECT_GE(bytes - at(ring.x), 4 * tokens * 3 * 4);
  }
}

TEST(RingMemory, IsRefusedWhereItIsWrong) {
  const Mamba3Dims dims = small_dims(false);
  std::vector<std::byte> memory(1 << 16);
  std::uint32_t cursor = 0;
  Mamba3Ring ring = ring_views(dims, 8, memory.data(), 1 << 14);
  EXPECT_NE(error_of([&] { check_ring(dims, ring); }).find("missing"), std::string::npos);
  ring.cursors = &cursor;
  check_ring(dims, ring);
  ring.tokens = 17;
  EXPECT_NE(error_of([&] { check_ring(dims, ring); }).find("17"), std::string::npos);
  ring.tokens = 8;
  ring.slot_bytes = 64;
  EXPECT_NE(error_of([&] { check_ring(dims, ring); }).find("bytes apart"), std::string::npos);
}

// A CPU has no rings.
TEST(RingMemory, IsRefusedOnACpu) {
  const ScanCase data(small_dims(false), {1}, 53);
  testing::Slots slots(data.dims, 1, 0);
  slots.put(0, data.starts[0]);
  testing::Rows rows(data.dims, 1, 0);
  rows.put(0, data.inputs[0], 0);
  std::vector<std::byte> memory(1 << 16);
  std::uint32_t cursor = 0;
  std::vector<float> y(12);
  const std::vector<std::int32_t> ids{0};
  Context ctx(with_threads(1));
  Mamba3StepArgs args;
  args.dims = data.dims;
  args.params = testing::params_of(data.inputs[0]);
  args.columns = rows.columns(data.dims);
  args.slots = ids;
  args.states = slots.states();
  args.states.ring = ring_views(data.dims, 8, memory.data(), 1 << 14);
  args.states.ring.cursors = &cursor;
  args.y = TensorView<float, 2>(y.data(), {1, 12});
  EXPECT_NE(error_of([&] { mamba3_step(args, ctx); }).find("no ring"), std::string::npos);
}

}  // namespace
}  // namespace mamba3
