#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/tolerance.h"
#include "mamba3/error.h"
#include "op_test_helpers.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "scan_backward_case.h"
#include "scan_backward_expect.h"

namespace mamba3 {
namespace {

using testing::append;
using testing::awkward_dims;
using testing::BackwardCase;
using testing::BackwardResult;
using testing::BackwardRunner;
using testing::describe;
using testing::expect_right;
using testing::Expected;
using testing::extreme_case;
using testing::Gradients;
using testing::gradients_of;
using testing::ParamGradients;
using testing::Random;

std::int64_t next_prime(std::int64_t above) {
  const auto prime = [](std::int64_t v) {
    for (std::int64_t i = 2; i * i <= v; ++i) {
      if (v % i == 0) return false;
    }
    return true;
  };
  while (!prime(++above)) continue;
  return above;
}

class ScanBackward : public ::testing::TestWithParam<Mamba3Dims> {
 protected:
  std::int64_t chunk() const { return mamba3_scan_chunk_tokens(GetParam()); }
};

TEST_P(ScanBackward, AgreesWithTheOracleAtAwkwardLengths) {
  const std::int64_t c = chunk();
  const BackwardCase data(GetParam(), {0, 1, 2, c - 1, c, 0, c + 1, 2 * c + 5}, 51);
  const Expected expected(data);
  for_each_target([&] {
    const Gradients got = gradients_of(data);
    expect_right(got.sequences, expected);
    expect_right(got.params, expected);
  });
}

TEST_P(ScanBackward, LongRunOverSeveralSlabsAgreesWithTheOracle) {
  const std::int64_t slab = mamba3_scan_backward_slab_tokens(GetParam());
  const BackwardCase data(GetParam(), {next_prime(2 * slab)}, 52);
  const Expected expected(data);
  const Gradients got = gradients_of(data, {.threads = 2, .which = {}});
  expect_right(got.sequences, expected);
  expect_right(got.params, expected);
}

TEST_P(ScanBackward, NeitherThreadsNorPackingNorNeighboursChangeABit) {
  const Mamba3Dims& d = GetParam();
  const std::int64_t c = chunk();
  // Of the largest layers a few chunks have to do: the others pass the end of a slab.
  const bool large = d.heads * d.head_dim * d.state * d.rank > 32768;
  const std::int64_t longest = large ? 2 * c + 1 : mamba3_scan_backward_slab_tokens(d) + 1;
  const BackwardCase data(d, {c + 2, 1, longest, 0, 7}, 53);
  for_each_target([&] {
    const Gradients all = gradients_of(data);
    for (const int threads : {2, 5}) {
      const Gradients again = gradients_of(data, {.threads = threads, .which = {}});
      EXPECT_TRUE(again.params == all.params) << threads;
      for (std::size_t i = 0; i < 5; ++i) EXPECT_TRUE(again.sequences[i] == all.sequences[i]) << i;
    }
    Gradients one_by_one = {{}, ParamGradients(data.dims)};
    for (std::int64_t i = 0; i < 5; ++i) {
      BackwardRunner runner(data, {.threads = 3, .which = {i}});
      EXPECT_TRUE(runner.run(one_by_one.params)[0] == all.sequences[static_cast<std::size_t>(i)])
          << i;
    }
    EXPECT_TRUE(one_by_one.params == all.params);
    const Gradients some = gradients_of(data, {.threads = 2, .which = {4, 3, 2}});
    for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(some.sequences[i] == all.sequences[4 - i]) << i;
  });
}

// Tokens [from, to) of a case's first sequence.
Mamba3RefInputs<float> tokens_of(const Mamba3RefInputs<float>& in, std::int64_t from,
                                 std::int64_t to) {
  Mamba3RefInputs<float> out = in;
  out.tokens = to - from;
  for (const auto part : {&Mamba3RefInputs<float>::x, &Mamba3RefInputs<float>::z,
                          &Mamba3RefInputs<float>::in_b, &Mamba3RefInputs<float>::out_c,
                          &Mamba3RefInputs<float>::dt_raw, &Mamba3RefInputs<float>::decay_raw,
                          &Mamba3RefInputs<float>::trap_raw, &Mamba3RefInputs<float>::angle_raw}) {
    const std::int64_t width = std::ssize(in.*part) / in.tokens;
    (out.*part).assign((in.*part).begin() + from * width, (in.*part).begin() + to * width);
  }
  return out;
}

// The state's gradient is handed from the later part to the earlier one.
TEST_P(ScanBackward, CutsStayWithinTheTolerance) {
  const std::int64_t c = chunk();
  const BackwardCase whole(GetParam(), {2 * c + 3}, 63);
  const Expected expected(whole);
  const std::int64_t inner = GetParam().heads * GetParam().head_dim;
  for (const std::int64_t cut : {std::int64_t{0}, std::int64_t{1}, c - 1, c, c + 2, 2 * c + 3}) {
    SCOPED_TRACE(cut);
    BackwardCase first = whole;
    BackwardCase second = whole;
    first.inputs[0] = tokens_of(whole.inputs[0], 0, cut);
    second.inputs[0] = tokens_of(whole.inputs[0], cut, whole.inputs[0].tokens);
    first.grad_y[0].resize(static_cast<std::size_t>(cut * inner));
    second.grad_y[0].erase(second.grad_y[0].begin(), second.grad_y[0].begin() + cut * inner);
    second.starts[0] = testing::ScanRunner(first, {}).run()[0].state;
    ParamGradients params(GetParam());
    const auto later = BackwardRunner(second, {}).run(params);
    first.grad_states[0] = later[0].state;
    auto joined = BackwardRunner(first, {}).run(params);
    append(joined[0].columns, later[0].columns);
    expect_right(joined, expected);
    expect_right(params, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ScanBackward, ::testing::ValuesIn(awkward_dims()),
                         [](const auto& each) { return describe(each.param); });

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

// Heads enough to be walked several in a task.
TEST(ScanBackwardBlocks, ManyHeads) {
  for (const std::int64_t groups : {1, 2, 16}) {
    for (const std::int64_t rank : {1, 2}) {
      Mamba3Dims dims = small_dims(rank);
      dims.heads = 32;
      dims.groups = groups;
      const BackwardCase data(dims, {70, 3}, 55);
      const Expected expected(data);
      const Gradients got = gradients_of(data, {.threads = 3, .which = {}});
      expect_right(got.sequences, expected);
      expect_right(got.params, expected);
    }
  }
}

TEST(ScanBackwardBlocks, ManySequences) {
  Random random(56);
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < 300; ++i) lengths.push_back(random.below(40));
  lengths.push_back(700);
  lengths.push_back(2);
  const BackwardCase data(small_dims(), lengths, 57);
  const Expected expected(data);
  const Gradients got = gradients_of(data, {.threads = 2, .which = {}});
  expect_right(got.sequences, expected);
  expect_right(got.params, expected);
}

TEST(ScanBackwardExtremes, StrongAndWeakDecaysAndHugeSteps) {
  for (const std::int64_t rank : {1, 2, 4}) {
    const BackwardCase data = extreme_case(small_dims(rank));
    const Expected expected(data);
    for_each_target([&] {
      const Gradients got = gradients_of(data);
      expect_right(got.sequences, expected);
      expect_right(got.params, expected);
    });
  }
}

TEST(ScanBackwardSums, AddsToTheGradientsOfParameters) {
  const BackwardCase data(small_dims(2), {40, 5}, 60);
  const Gradients from_zero = gradients_of(data);
  Gradients twice = from_zero;
  BackwardRunner(data, {}).run(twice.params);
  auto once = ParamGradients(from_zero.params);
  const auto a = once.all(), b = twice.params.all();
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i]->size(); ++j) {
      EXPECT_NEAR((*b[i])[j], 2 * (*a[i])[j], 1e-5f * (1 + std::abs((*a[i])[j])));  // two sums
    }
  }
}

TEST(ScanBackwardChecks, NoTokensLeaveTheStateGradientAsItIs) {
  const BackwardCase data(small_dims(), {0, 0}, 61);
  const Gradients got = gradients_of(data);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(same_bits(got.sequences[i].state.ssm, data.grad_states[i].ssm));
    EXPECT_TRUE(same_bits(got.sequences[i].state.k, data.grad_states[i].k));
    EXPECT_TRUE(same_bits(got.sequences[i].state.v, data.grad_states[i].v));
    EXPECT_TRUE(same_bits(got.sequences[i].state.angle, data.grad_states[i].angle));
  }
}

TEST(ScanBackwardChecks, RefusesWhatItCannotRun) {
  const Mamba3Dims dims = small_dims();
  const BackwardCase data(dims, {1, 3}, 62);
  BackwardRunner runner(data, {});
  ParamGradients params(dims);
  const auto refuses = [&](auto change) { EXPECT_THROW(runner.run(params, change), Error); };
  using Args = Mamba3ScanBackwardArgs;
  const std::vector<std::int64_t> falling{0, 5, 4};
  const std::vector<std::int64_t> longer{0, 1, 5};
  const std::vector<std::int32_t> twice{2, 2};
  const std::vector<std::int32_t> outside{0, 3};
  refuses([&](Args& a) { a.cu_seqlens = {}; });
  refuses([&](Args& a) { a.cu_seqlens = falling; });
  refuses([&](Args& a) { a.cu_seqlens = longer; });
  refuses([&](Args& a) { a.slots = twice; });
  refuses([&](Args& a) { a.slots = outside; });
  refuses([&](Args& a) { a.slots = a.slots.first(1); });
  refuses([&](Args& a) { a.dims.rank = 2; });
  refuses([&](Args& a) { a.params.skip = nullptr; });
  refuses([&](Args& a) { a.columns.x = nullptr; });
  refuses([&](Args& a) { a.grad_columns.x = nullptr; });
  refuses([&](Args& a) { a.grad_columns.row_stride = 1; });
  refuses([&](Args& a) { a.grad_params.in_b_norm = nullptr; });
  refuses([&](Args& a) { a.grad_states.k = nullptr; });
  refuses([&](Args& a) { a.grad_states.slots = 2; });
  refuses([&](Args& a) { a.grad_y.shape[0] = 3; });
  runner.run(params);
  EXPECT_TRUE(runner.clean());
}

}  // namespace
}  // namespace mamba3
