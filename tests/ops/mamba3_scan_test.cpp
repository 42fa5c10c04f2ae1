#include "ops/mamba3_scan/mamba3_scan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/tolerance.h"
#include "mamba3/error.h"
#include "op_test_helpers.h"
#include "ops/mamba3_step/mamba3_step.h"
#include "scan_case.h"

namespace mamba3 {
namespace {

using testing::awkward_dims;
using testing::describe;
using testing::params_of;
using testing::Random;
using testing::random_inputs;
using testing::random_state;
using testing::Rows;
using testing::ScanCase;
using testing::ScanOptions;
using testing::ScanResult;
using testing::ScanRunner;
using testing::Slots;
using testing::widen;

std::vector<ScanResult> run(const ScanCase& data, const ScanOptions& options = {}) {
  ScanRunner runner(data, options);
  std::vector<ScanResult> out = runner.run();
  EXPECT_TRUE(runner.clean());
  return out;
}

void expect_close(const char* name, const std::vector<float>& got, const std::vector<float>& naive,
                  const std::vector<double>& truth, ErrorMetric metric) {
  const Comparison c = compare(std::span<const float>(got), std::span<const float>(naive),
                               std::span<const double>(truth), kFloatRounding, metric);
  EXPECT_TRUE(c.ok) << name << ": error " << c.error << ", naive " << c.naive_error << ", bound "
                    << c.bound;
}

void expect_right(const ScanResult& got, const Mamba3RefInputs<float>& in,
                  const Mamba3RefState<float>& start) {
  Mamba3RefState<float> naive_state = start;
  const auto naive = mamba3_scan_ref(in, naive_state);
  Mamba3RefState<double> state = widen(start);
  const auto truth = mamba3_scan_ref(widen(in), state);
  expect_close("y", got.y, naive, truth, ErrorMetric::kRelative);
  expect_close("ssm", got.state.ssm, naive_state.ssm, state.ssm, ErrorMetric::kRelative);
  expect_close("k", got.state.k, naive_state.k, state.k, ErrorMetric::kRelative);
  expect_close("v", got.state.v, naive_state.v, state.v, ErrorMetric::kRelative);
  expect_close("angle", got.state.angle, naive_state.angle, state.angle, ErrorMetric::kCircle);
}

class Scan : public ::testing::TestWithParam<Mamba3Dims> {
 protected:
  std::int64_t chunk() const { return mamba3_scan_chunk_tokens(GetParam()); }
};

TEST_P(Scan, AgreesWithTheOracleAtAwkwardLengths) {
  const std::int64_t c = chunk();
  const ScanCase data(GetParam(), {0, 1, 2, c - 1, c, 0, c + 1, 2 * c + 5}, 11);
  for_each_target([&] {
    const auto got = run(data);
    for (std::size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE(data.inputs[i].tokens);
      expect_right(got[i], data.inputs[i], data.starts[i]);
    }
  });
}

TEST_P(Scan, NeitherThreadsNorPackingNorNeighboursChangeABit) {
  const std::int64_t c = chunk();
  const ScanCase data(GetParam(), {c + 2, 1, 3 * c + 1, 0, 7}, 12);
  for_each_target([&] {
    const auto all = run(data);
    for (const int threads : {2, 3, 5}) {
      const auto again = run(data, {.threads = threads, .which = {}, .cuts = {}});
      for (std::size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(again[i] == all[i]) << threads;
    }
    for (std::int64_t i = 0; i < 5; ++i) {
      // More threads than heads: the chunks of the long one are taken all at once.
      const auto alone = run(data, {.threads = 7, .which = {i}, .cuts = {}});
      EXPECT_TRUE(alone[0] == all[static_cast<std::size_t>(i)]) << i;
    }
    const auto some = run(data, {.threads = 2, .which = {4, 3, 2}, .cuts = {}});
    for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(some[i] == all[4 - i]) << i;
  });
}

TEST_P(Scan, CutsOnTheChunkGridChangeNoBit) {
  const std::int64_t c = chunk();
  const ScanCase data(GetParam(), {3 * c + 2}, 13);
  for_each_target([&] {
    const auto whole = run(data);
    const std::vector<std::vector<std::int64_t>> cuts{
        {0}, {c}, {2 * c}, {c, 2 * c}, {c, 2 * c, 3 * c}};
    for (const auto& cut : cuts) {
      EXPECT_TRUE(run(data, {.threads = 1, .which = {}, .cuts = cut})[0] == whole[0]);
      EXPECT_TRUE(run(data, {.threads = 9, .which = {}, .cuts = cut})[0] == whole[0]);
    }
  });
}

TEST_P(Scan, CutsElsewhereStayWithinTheTolerance) {
  const std::int64_t c = chunk();
  const ScanCase data(GetParam(), {c + 3}, 14);
  for (std::int64_t cut = 0; cut <= c + 3; cut += cut < 4 || cut > c - 3 ? 1 : 5) {
    SCOPED_TRACE(cut);
    const auto got = run(data, {.threads = 1, .which = {}, .cuts = {cut}});
    expect_right(got[0], data.inputs[0], data.starts[0]);
  }
}

// The same sequence through mamba3_step.
ScanResult steps(const ScanCase& data) {
  const Mamba3Dims& dims = data.dims;
  const Mamba3RefInputs<float>& in = data.inputs[0];
  const std::int64_t inner = dims.heads * dims.head_dim;
  Context ctx({.threads = 1, .seed = 0, .log = {}});
  Slots pool(dims, 1, 0);
  pool.put(0, data.starts[0]);
  ScanResult out;
  out.y.resize(static_cast<std::size_t>(in.tokens * inner));
  Rows rows(dims, in.tokens, 0);
  const std::vector<std::int32_t> slots{0};
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    rows.put(t, in, t);
    Mamba3StepArgs args;
    args.dims = dims;
    args.params = params_of(in);
    args.columns = split_columns(rows.data.data() + t * rows.stride, rows.stride, dims);
    args.slots = slots;
    args.states = pool.states();
    args.y = TensorView<float, 2>(out.y.data() + t * inner, {1, inner});
    mamba3_step(args, ctx);
  }
  out.state = pool.get(0);
  out.turns = pool.turns;
  return out;
}

TEST_P(Scan, EqualsAsManySteps) {
  const ScanCase data(GetParam(), {2 * chunk() + 1}, 15);
  for_each_target([&] {
    const ScanResult scanned = run(data)[0];
    const ScanResult stepped = steps(data);
    EXPECT_EQ(scanned.turns, stepped.turns);
    EXPECT_TRUE(same_bits(scanned.state.k, stepped.state.k));
    EXPECT_TRUE(same_bits(scanned.state.v, stepped.state.v));
    Mamba3RefState<double> state = widen(data.starts[0]);
    const auto truth = mamba3_scan_ref(widen(data.inputs[0]), state);
    expect_close("y", scanned.y, stepped.y, truth, ErrorMetric::kRelative);
    expect_close("ssm", scanned.state.ssm, stepped.state.ssm, state.ssm, ErrorMetric::kRelative);
  });
}

// Each product's inputs are rounded once. Where no instruction takes bf16 this is the fp32 path.
TEST_P(Scan, RoundedProductsStayClose) {
  // Two products one after the other: scores, then y. Sums of few terms may cancel.
  const double bound = (GetParam().state < 16 ? 16 : 2) * kBf16Rounding;
  const std::int64_t c = chunk();
  const ScanCase data(GetParam(), {0, 1, c - 1, c, 3 * c + 1}, 16);
  for_each_target([&] {
    const auto exact = run(data);
    const auto rounded = run(data, {.threads = 1, .bf16_products = true, .which = {}, .cuts = {}});
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const auto close = [&](const std::vector<float>& got, const std::vector<float>& want) {
        return largest_error(std::span<const float>(got), std::span<const float>(want),
                             ErrorMetric::kRelative) <= bound;
      };
      EXPECT_TRUE(close(rounded[i].y, exact[i].y)) << data.inputs[i].tokens;
      EXPECT_TRUE(close(rounded[i].state.ssm, exact[i].state.ssm)) << data.inputs[i].tokens;
      EXPECT_TRUE(same_bits(rounded[i].state.k, exact[i].state.k));
      EXPECT_TRUE(same_bits(rounded[i].state.v, exact[i].state.v));
      EXPECT_EQ(rounded[i].turns, exact[i].turns);
    }
  });
}

TEST_P(Scan, RoundedProductsAreAsInvariant) {
  const std::int64_t c = chunk();
  const ScanCase data(GetParam(), {3 * c + 2, 5, c}, 17);
  ScanOptions rounded;
  rounded.bf16_products = true;
  const auto all = run(data, rounded);
  for (std::int64_t i = 0; i < 3; ++i) {
    for (const int threads : {1, 2, 9}) {
      rounded.which = {i};
      rounded.threads = threads;
      EXPECT_TRUE(run(data, rounded)[0] == all[static_cast<std::size_t>(i)]) << i;
    }
  }
  rounded.which = {0};
  for (const std::int64_t cut : {c, 2 * c, 3 * c}) {
    rounded.cuts = {cut};
    EXPECT_TRUE(run(data, rounded)[0] == all[0]) << cut;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Scan, ::testing::ValuesIn(awkward_dims()),
                         [](const auto& p) { return describe(p.param); });

Mamba3Dims small_dims(std::int64_t rank = 1) {
  Mamba3Dims dims;
  dims.heads = 2;
  dims.head_dim = 20;
  dims.state = 24;
  dims.rank = rank;
  dims.mimo = rank > 1;
  dims.angles = 6;
  return dims;
}

TEST(ScanSegments, ManySegmentsChangeNothing) {
  // 600 tokens do not fit one segment; the 700 are cut at a chunk of their own, not of the segment.
  const ScanCase data(small_dims(), {600, 3, 0, 700, 1}, 21);
  const auto all = run(data);
  for (std::size_t i = 0; i < all.size(); ++i) {
    expect_right(all[i], data.inputs[i], data.starts[i]);
    for (const int threads : {1, 6}) {
      const auto alone =
          run(data, {.threads = threads, .which = {static_cast<std::int64_t>(i)}, .cuts = {}});
      EXPECT_TRUE(alone[0] == all[i]) << i << " with " << threads;
    }
  }
}

TEST(ScanExtremes, StrongAndWeakDecaysAndHugeSteps) {
  for (const std::int64_t rank : {1, 2, 4}) {
    ScanCase data(small_dims(rank), {150}, 22);
    Mamba3RefInputs<float>& in = data.inputs[0];
    const std::vector<float> dt{-800, -90, -30, 0, 3, 60, 200};
    const std::vector<float> decay{-1e6f, -2e4f, -1, 0, 50, 1000, 3e4f};
    const std::vector<float> trap{-100, -30, 0, 30, 100};
    const std::vector<float> angle{-1e4f, -8, 0, 0.3f, 8, 50};
    Random random(23);
    const auto draw = [&](std::vector<float>& to, const std::vector<float>& from) {
      for (float& v : to) {
        if (random.below(3) == 0) v = from[random.below(static_cast<std::int64_t>(from.size()))];
      }
    };
    draw(in.dt_raw, dt);
    draw(in.decay_raw, decay);
    draw(in.trap_raw, trap);
    draw(in.angle_raw, angle);
    for (float& v : in.x) v *= random.below(9) == 0 ? 1e6f : 1.0f;
    for (float& v : in.in_b) v *= random.below(9) == 0 ? 1e-20f : 1.0f;
    for (float& v : in.out_c) v *= random.below(9) == 0 ? 1e18f : 1.0f;
    for_each_target([&] { expect_right(run(data)[0], in, data.starts[0]); });
  }
}

// What is not a number shows where it does in the plain recurrence, and never in an earlier token.
TEST(ScanExtremes, NonFiniteInputsStayCausal) {
  for (const std::int64_t rank : {1, 3}) {
    for (const float bad : {kNan, kInf}) {
      for (int which = 0; which < 8; ++which) {
        ScanCase data(small_dims(rank), {90}, 24);
        Mamba3RefInputs<float>& in = data.inputs[0];
        std::vector<float>* columns[] = {&in.x,         &in.z,        &in.in_b,      &in.out_c,
                                         &in.decay_raw, &in.trap_raw, &in.angle_raw, &in.dt_raw};
        std::vector<float>& column = *columns[which];
        const auto width = static_cast<std::int64_t>(column.size()) / in.tokens;
        column[static_cast<std::size_t>(37 * width)] = bad;
        Mamba3RefState<double> state = widen(data.starts[0]);
        const auto truth = mamba3_scan_ref(widen(in), state);
        const std::int64_t inner = data.dims.heads * data.dims.head_dim;
        for (const bool rounded : {false, true}) {
          ScanOptions options;
          options.bf16_products = rounded;
          const ScanResult got = run(data, options)[0];
          for (std::int64_t i = 0; i < 90 * inner; ++i) {
            ASSERT_EQ(std::isfinite(got.y[i]), std::isfinite(truth[i]))
                << "column " << which << " with " << bad << ", rank " << rank << ", token "
                << i / inner << ", value " << i % inner << ": " << got.y[i] << " for " << truth[i];
          }
        }
      }
    }
  }
}

TEST(ScanChecks, RefusesWhatItCannotRun) {
  Random random(31);
  const Mamba3Dims dims = small_dims();
  const auto in = random_inputs(dims, 4, random);
  Slots pool(dims, 3, 0);
  for (const std::int64_t slot : {0, 1, 2}) pool.put(slot, random_state(dims, random));
  Rows rows(dims, 4, 0);
  for (std::int64_t t = 0; t < 4; ++t) rows.put(t, in, t);
  std::vector<float> y(static_cast<std::size_t>(4 * dims.heads * dims.head_dim));
  Context ctx({.threads = 1, .seed = 0, .log = {}});
  Mamba3ScanArgs good;
  const std::vector<std::int64_t> bounds{0, 1, 4};
  const std::vector<std::int32_t> slots{2, 0};
  good.dims = dims;
  good.params = params_of(in);
  good.columns = rows.columns(dims);
  good.cu_seqlens = bounds;
  good.slots = slots;
  good.states = pool.states();
  good.y = TensorView<float, 2>(y.data(), {4, dims.heads * dims.head_dim});
  mamba3_scan(good, ctx);
  const auto refuses = [&](auto change) {
    Mamba3ScanArgs args = good;
    change(args);
    EXPECT_THROW(mamba3_scan(args, ctx), Error);
  };
  const std::vector<std::int64_t> late{1, 2, 4};
  const std::vector<std::int64_t> falling{0, 5, 4};
  const std::vector<std::int64_t> longer{0, 1, 5};
  const std::vector<std::int64_t> negative{0, -3, 4};
  const std::vector<std::int32_t> twice{2, 2};
  const std::vector<std::int32_t> outside{0, 3};
  refuses([&](auto& a) { a.cu_seqlens = {}; });
  refuses([&](auto& a) { a.cu_seqlens = late; });
  refuses([&](auto& a) { a.cu_seqlens = falling; });
  refuses([&](auto& a) { a.cu_seqlens = longer; });
  refuses([&](auto& a) { a.cu_seqlens = negative; });
  refuses([&](auto& a) { a.slots = twice; });
  refuses([&](auto& a) { a.slots = outside; });
  refuses([&](auto& a) { a.slots = a.slots.first(1); });
  refuses([&](auto& a) { a.dims.rank = 2; });
  refuses([&](auto& a) { a.params.skip = nullptr; });
  refuses([&](auto& a) { a.columns.x = nullptr; });
  refuses([&](auto& a) { a.y.shape[0] = 3; });
}

TEST(ScanChecks, NothingToDo) {
  Random random(32);
  const Mamba3Dims dims = small_dims();
  const auto in = random_inputs(dims, 1, random);
  Slots pool(dims, 1, 0);
  pool.put(0, random_state(dims, random));
  const auto before = pool.ssm;
  const Rows rows(dims, 0, 0);
  Context ctx({.threads = 2, .seed = 0, .log = {}});
  Mamba3ScanArgs args;
  const std::vector<std::int64_t> bounds{0, 0};
  const std::vector<std::int32_t> slots{0};
  args.dims = dims;
  args.params = params_of(in);
  args.columns = rows.columns(dims);
  args.cu_seqlens = bounds;
  args.slots = slots;
  args.states = pool.states();
  args.y = TensorView<float, 2>(nullptr, {0, dims.heads * dims.head_dim});
  mamba3_scan(args, ctx);
  EXPECT_TRUE(same_bits(pool.ssm, before));
}

}  // namespace
}  // namespace mamba3
