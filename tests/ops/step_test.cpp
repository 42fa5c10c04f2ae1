#include "ops/mamba3_step/mamba3_step.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/arena.h"
#include "core/tolerance.h"
#include "mamba3/error.h"
#include "mamba3_case.h"
#include "op_test_helpers.h"

namespace mamba3 {
namespace {

using testing::awkward_dims;
using testing::describe;
using testing::params_of;
using testing::Random;
using testing::random_inputs;
using testing::random_state;
using testing::Rows;
using testing::Slots;
using testing::widen;

constexpr std::int64_t kPadding = 3;

// `batch` sequences of one layer, stepped token by token.
struct Batch {
  Mamba3Dims dims;
  std::vector<Mamba3RefInputs<float>> inputs;  // all with the parameters of the first
  std::vector<Mamba3RefState<float>> starts;

  Batch(const Mamba3Dims& dims_in, std::int64_t batch, std::int64_t tokens, std::uint64_t seed)
      : dims(dims_in) {
    Random random(seed);
    const Mamba3RefInputs<float> layer = random_inputs(dims, tokens, random);
    for (std::int64_t i = 0; i < batch; ++i) {
      Mamba3RefInputs<float> in = layer;
      const Mamba3RefInputs<float> drawn = random_inputs(dims, tokens, random);
      in.x = drawn.x;
      in.z = drawn.z;
      in.in_b = drawn.in_b;
      in.out_c = drawn.out_c;
      in.dt_raw = drawn.dt_raw;
      in.decay_raw = drawn.decay_raw;
      in.trap_raw = drawn.trap_raw;
      in.angle_raw = drawn.angle_raw;
      inputs.push_back(in);
      starts.push_back(random_state(dims, random));
    }
  }
};

struct StepRun {
  std::vector<std::vector<float>> y;          // [sequence][t, h * p]
  std::vector<Mamba3RefState<float>> states;  // the canonical tuple, angles from turns
  std::vector<std::vector<std::uint32_t>> turns;
  bool clean = true;  // nothing outside was written
};

// Runs the sequences named by `which`, each in the slot beside it.
StepRun run_steps(const Batch& batch, const std::vector<std::int64_t>& which,
                  const std::vector<std::int32_t>& slots, std::int64_t slot_count, int threads) {
  const Mamba3Dims& dims = batch.dims;
  const auto rows = static_cast<std::int64_t>(which.size());
  const std::int64_t inner = dims.heads * dims.head_dim;
  const std::int64_t tokens = batch.inputs[0].tokens;
  Context ctx(with_threads(threads));
  Slots pool(dims, slot_count, kPadding);
  StepRun out;
  out.y.resize(which.size());
  for (std::int64_t i = 0; i < rows; ++i) pool.put(slots[i], batch.starts[which[i]]);
  for (std::int64_t t = 0; t < tokens; ++t) {
    Rows in(dims, rows, kPadding);
    for (std::int64_t i = 0; i < rows; ++i) in.put(i, batch.inputs[which[i]], t);
    std::vector<float> y(static_cast<std::size_t>(rows * (inner + kPadding)), kNan);
    Mamba3StepArgs args;
    args.dims = dims;
    args.params = params_of(batch.inputs[0]);
    args.columns = in.columns(dims);
    args.slots = slots;
    args.states = pool.states();
    args.y = TensorView<float, 2>(y.data(), {rows, inner}, {inner + kPadding, 1});
    mamba3_step(args, ctx);
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto begin = y.begin() + i * (inner + kPadding);
      out.y[i].insert(out.y[i].end(), begin, begin + inner);
      out.clean = out.clean && std::all_of(begin + inner, begin + inner + kPadding,
                                           [](float v) { return std::isnan(v); });
    }
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    out.states.push_back(pool.get(slots[i]));
    const auto begin = pool.turns.begin() + slots[i] * (dims.heads * dims.angles + kPadding);
    out.turns.emplace_back(begin, begin + dims.heads * dims.angles);
  }
  out.clean = out.clean && pool.padding_is_untouched();
  return out;
}

void expect_same(const StepRun& a, std::size_t i, const StepRun& b, std::size_t j) {
  EXPECT_TRUE(same_bits(a.y[i], b.y[j]));
  EXPECT_TRUE(same_bits(a.states[i].ssm, b.states[j].ssm));
  EXPECT_TRUE(same_bits(a.states[i].k, b.states[j].k));
  EXPECT_TRUE(same_bits(a.states[i].v, b.states[j].v));
  EXPECT_EQ(a.turns[i], b.turns[j]);
}

void expect_close(const char* name, const std::vector<float>& got, const std::vector<float>& naive,
                  const std::vector<double>& truth, ErrorMetric metric) {
  const Comparison c = compare(std::span<const float>(got), std::span<const float>(naive),
                               std::span<const double>(truth), kFloatRounding, metric);
  EXPECT_TRUE(c.ok) << name << ": error " << c.error << ", naive " << c.naive_error << ", bound "
                    << c.bound;
}

class Step : public ::testing::TestWithParam<Mamba3Dims> {};

void expect_oracle(const Batch& batch) {
  const StepRun run = run_steps(batch, {0, 1}, {1, 0}, 2, 1);
  EXPECT_TRUE(run.clean);
  for (std::size_t i = 0; i < 2; ++i) {
    Mamba3RefState<float> naive_state = batch.starts[i];
    const auto naive = mamba3_scan_ref(batch.inputs[i], naive_state);
    Mamba3RefState<double> state = widen(batch.starts[i]);
    const auto truth = mamba3_scan_ref(widen(batch.inputs[i]), state);
    expect_close("y", run.y[i], naive, truth, ErrorMetric::kRelative);
    expect_close("ssm", run.states[i].ssm, naive_state.ssm, state.ssm, ErrorMetric::kRelative);
    expect_close("k", run.states[i].k, naive_state.k, state.k, ErrorMetric::kRelative);
    expect_close("v", run.states[i].v, naive_state.v, state.v, ErrorMetric::kRelative);
    expect_close("angle", run.states[i].angle, naive_state.angle, state.angle,
                 ErrorMetric::kCircle);
  }
}

TEST_P(Step, AgreesWithTheOracleOnEveryInstructionSet) {
  const Batch batch(GetParam(), 2, 9, 1);
  for_each_target([&] { expect_oracle(batch); });
}

TEST_P(Step, ARowsBitsDependOnNothingElse) {
  const Batch batch(GetParam(), 5, 3, 2);
  const StepRun all = run_steps(batch, {0, 1, 2, 3, 4}, {4, 2, 0, 6, 5}, 7, 1);
  EXPECT_TRUE(all.clean);
  for (const int threads : {2, 3}) {
    const StepRun again = run_steps(batch, {0, 1, 2, 3, 4}, {4, 2, 0, 6, 5}, 7, threads);
    for (std::size_t i = 0; i < 5; ++i) expect_same(again, i, all, i);
  }
  const StepRun alone = run_steps(batch, {3}, {0}, 1, 3);
  expect_same(alone, 0, all, 3);
  const StepRun permuted = run_steps(batch, {4, 1, 3}, {1, 0, 2}, 3, 2);
  expect_same(permuted, 0, all, 4);
  expect_same(permuted, 1, all, 1);
  expect_same(permuted, 2, all, 3);
}

INSTANTIATE_TEST_SUITE_P(Sizes, Step, ::testing::ValuesIn(awkward_dims()),
                         [](const auto& p) { return describe(p.param); });

TEST(StepPhases, ManyTurnsInOneTokenKeepTheirFraction) {
  Mamba3Dims dims;
  dims.heads = 1;
  dims.head_dim = 4;
  dims.state = 8;
  dims.angles = 4;
  Batch batch(dims, 1, 64, 3);
  for (float& v : batch.inputs[0].dt_raw) v = std::fabs(v) * 200 + 37.25f;
  const StepRun run = run_steps(batch, {0}, {0}, 1, 1);
  Mamba3RefState<double> state = widen(batch.starts[0]);
  mamba3_scan_ref(widen(batch.inputs[0]), state);
  for (std::size_t i = 0; i < state.angle.size(); ++i) {
    // 64 roundings to 2^-33 turns each, and the start's; a float holds the rest.
    const double turn = run.turns[0][i] * 0x1p-32;
    EXPECT_LT(circle_distance(turn * 6.283185307179586, state.angle[i]),
              65 * 6.3 * 0x1p-33 + 1e-10);
  }
}

// A rounding to nearest wanders, a truncation drifts: over 50,000 tokens by 300 times as much.
TEST(StepPhases, ManyTokensDoNotDrift) {
  constexpr std::int64_t kTokens = 50000;
  Mamba3Dims dims;
  dims.heads = 1;
  dims.head_dim = 1;
  dims.state = 32;
  dims.angles = 16;
  Random random(8);
  const auto in = random_inputs(dims, 1, random);
  Slots pool(dims, 1, 0);
  pool.put(0, Mamba3RefState<float>::zeros(dims));
  Rows rows(dims, 1, 0);
  rows.put(0, in, 0);
  const std::vector<std::int32_t> slots{0};
  std::vector<float> y(1);
  Context ctx(with_threads(1));
  Mamba3StepArgs args;
  args.dims = dims;
  args.params = params_of(in);
  args.columns = rows.columns(dims);
  args.slots = slots;
  args.states = pool.states();
  args.y = TensorView<float, 2>(y.data(), {1, 1});
  std::vector<double> turns(16, 0);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    // Another angle every token, so that the roundings are of many numbers.
    float* angle = rows.data.data() + (args.columns.angle_raw - rows.data.data());
    const double dt = std::log1p(std::exp(static_cast<double>(in.dt_raw[0]) + in.dt_bias[0]));
    for (std::int64_t i = 0; i < 16; ++i) {
      angle[i] = static_cast<float>(std::sin(0.37 * static_cast<double>(t * 16 + i)));
      turns[i] += std::tanh(static_cast<double>(angle[i])) * dt / 2;
    }
    mamba3_step(args, ctx);
  }
  for (std::int64_t i = 0; i < 16; ++i) {
    const double off = std::remainder(pool.turns[i] * 0x1p-32 - turns[i], 1.0);
    EXPECT_LT(std::fabs(off), 6 * std::sqrt(kTokens / 12.0) * 0x1p-32) << i;
  }
}

TEST(StepPhases, ANanAngleReachesTheState) {
  Mamba3Dims dims;
  dims.heads = 2;
  dims.head_dim = 3;
  dims.state = 8;
  dims.angles = 3;
  Batch batch(dims, 1, 3, 4);
  batch.inputs[0].angle_raw[4] = kNan;
  const StepRun run = run_steps(batch, {0}, {0}, 1, 1);
  EXPECT_TRUE(std::isfinite(run.y[0][5]));
  EXPECT_TRUE(std::isnan(run.y[0][6]));
  EXPECT_TRUE(std::isnan(run.y[0][17]));
  Mamba3RefState<float> naive_state = batch.starts[0];
  mamba3_scan_ref(batch.inputs[0], naive_state);
  for (std::size_t i = 0; i < naive_state.ssm.size(); ++i) {
    EXPECT_TRUE(same_kind(run.states[0].ssm[i], naive_state.ssm[i])) << i;
  }
}

Mamba3StepArgs small_args(Slots& pool, const Mamba3RefInputs<float>& in, const Rows& rows,
                          std::vector<float>& y, const std::vector<std::int32_t>& slots) {
  Mamba3StepArgs args;
  args.dims = in.dims;
  args.params = params_of(in);
  args.columns = rows.columns(in.dims);
  args.slots = slots;
  args.states = pool.states();
  args.y = TensorView<float, 2>(
      y.data(), {static_cast<std::int64_t>(slots.size()), in.dims.heads * in.dims.head_dim});
  return args;
}

TEST(StepChecks, RefusesWhatItCannotRun) {
  Mamba3Dims dims;
  dims.heads = 2;
  dims.head_dim = 4;
  dims.state = 8;
  dims.angles = 4;
  Random random(5);
  const auto in = random_inputs(dims, 2, random);
  Slots pool(dims, 3, 0);
  pool.put(0, random_state(dims, random));
  pool.put(2, random_state(dims, random));
  Rows rows(dims, 2, 0);
  rows.put(0, in, 0);
  rows.put(1, in, 1);
  std::vector<float> y(16);
  Context ctx(with_threads(1));
  const auto good = small_args(pool, in, rows, y, {0, 2});
  const auto refuses = [&](auto change) {
    Mamba3StepArgs args = good;
    change(args);
    EXPECT_THROW(mamba3_step(args, ctx), Error);
  };
  const std::vector<std::int32_t> twice{2, 2};
  const std::vector<std::int32_t> outside{0, 3};
  const std::vector<std::int32_t> negative{-1, 0};
  const std::vector<std::int32_t> slots{0, 2};
  const auto run = [&] {
    Mamba3StepArgs args = good;
    args.slots = slots;
    mamba3_step(args, ctx);
  };
  run();
  refuses([&](auto& a) { a.slots = twice; });
  refuses([&](auto& a) { a.slots = outside; });
  refuses([&](auto& a) { a.slots = negative; });
  refuses([&](auto& a) { a.slots = slots, a.dims.rank = 2; });
  refuses([&](auto& a) { a.slots = slots, a.dims.rank = 0; });
  refuses([&](auto& a) { a.slots = slots, a.dims.mimo = true, a.dims.rank = 9; });
  refuses([&](auto& a) { a.slots = slots, a.dims.angles = 5; });
  refuses([&](auto& a) { a.slots = slots, a.dims.groups = 3; });
  refuses([&](auto& a) { a.slots = slots, a.dims.heads = 0; });
  refuses([&](auto& a) { a.slots = slots, a.dims.head_dim = std::int64_t{1} << 62; });
  refuses([&](auto& a) { a.slots = slots, a.dims.mimo = true; });
  refuses([&](auto& a) { a.slots = slots, a.dims.out_norm = true; });
  refuses([&](auto& a) { a.slots = slots, a.dims.a_floor = kNan; });
  refuses([&](auto& a) { a.slots = slots, a.params.skip = nullptr; });
  refuses([&](auto& a) { a.slots = slots, a.columns.trap_raw = nullptr; });
  refuses([&](auto& a) { a.slots = slots, a.columns.row_stride = 7; });
  refuses([&](auto& a) { a.slots = slots, a.states.ssm_stride = 1; });
  refuses([&](auto& a) { a.slots = slots, a.y.shape[1] = 7; });
  refuses([&](auto& a) { a.slots = slots, a.y.stride[1] = 2; });
}

TEST(StepChecks, NothingToDo) {
  Mamba3Dims dims;
  dims.heads = 1;
  dims.head_dim = 1;
  dims.state = 1;
  Random random(6);
  const auto in = random_inputs(dims, 1, random);
  Slots pool(dims, 0, 0);
  const Rows rows(dims, 0, 0);
  std::vector<float> y;
  const std::vector<std::int32_t> none;
  Context ctx(with_threads(1));
  auto args = small_args(pool, in, rows, y, none);
  EXPECT_NO_THROW(mamba3_step(args, ctx));
}

TEST(StepWorkspace, IsWhatTheQuerySays) {
  const Mamba3Dims dims = awkward_dims()[8];
  Random random(7);
  const auto in = random_inputs(dims, 1, random);
  Slots pool(dims, 1, 0);
  pool.put(0, random_state(dims, random));
  Rows rows(dims, 1, 0);
  rows.put(0, in, 0);
  std::vector<float> y(static_cast<std::size_t>(dims.heads * dims.head_dim));
  const std::vector<std::int32_t> slots{0};
  Context ctx(with_threads(3));
  auto args = small_args(pool, in, rows, y, slots);
  mamba3_step(args, ctx);
  EXPECT_LE(ctx.workspace().peak_bytes(), mamba3_step_workspace_bytes(args, ctx));
}

}  // namespace
}  // namespace mamba3
