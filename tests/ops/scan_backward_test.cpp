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

namespace mamba3 {
namespace {

using testing::awkward_dims;
using testing::BackwardCase;
using testing::BackwardOptions;
using testing::BackwardResult;
using testing::BackwardRunner;
using testing::describe;
using testing::ParamGradients;
using testing::Random;
using testing::widen;

struct Gradients {
  std::vector<BackwardResult> sequences;
  ParamGradients params;
};

Gradients run(const BackwardCase& data, const BackwardOptions& options = {}) {
  Gradients out{{}, ParamGradients(data.dims)};
  BackwardRunner runner(data, options);
  out.sequences = runner.run(out.params);
  EXPECT_TRUE(runner.clean());
  return out;
}

// in_proj's rows of a gradient by the oracle, in double.
template <class T>
std::vector<double> rows_of(const Mamba3RefInputs<T>& in) {
  std::vector<double> out;
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    for (const auto* part : {&in.z, &in.x, &in.in_b, &in.out_c, &in.dt_raw, &in.decay_raw,
                             &in.trap_raw, &in.angle_raw}) {
      const std::int64_t width = std::ssize(*part) / in.tokens;
      out.insert(out.end(), part->begin() + t * width, part->begin() + (t + 1) * width);
    }
  }
  return out;
}

std::vector<std::pair<const char*, std::int64_t>> column_widths(const Mamba3Dims& d) {
  const std::int64_t inner = d.heads * d.head_dim;
  const std::int64_t shared = d.rank * d.groups * d.state;
  return {{"z", inner},    {"x", inner},   {"B", shared},     {"C", shared},
          {"dt", d.heads}, {"A", d.heads}, {"trap", d.heads}, {"angle", d.angle_columns()}};
}

template <class T>
std::vector<double> columns_of(const std::vector<T>& rows, std::int64_t stride, std::int64_t begin,
                               std::int64_t width) {
  std::vector<double> out;
  for (auto row = rows.begin(); row != rows.end(); row += stride) {
    out.insert(out.end(), row + begin, row + begin + width);
  }
  return out;
}

template <class G, class N>
void expect_close(const std::string& name, const std::vector<G>& got, const std::vector<N>& naive,
                  const std::vector<double>& truth) {
  const Comparison c = compare(std::span<const G>(got), std::span<const N>(naive),
                               std::span<const double>(truth), kGradientRounding);
  EXPECT_TRUE(c.ok) << name << ": error " << c.error << ", naive " << c.naive_error << ", bound "
                    << c.bound;
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

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

// What the oracle makes of each sequence.
struct Expected {
  std::vector<Mamba3RefGradients<double>> truth;
  std::vector<Mamba3RefGradients<float>> naive;

  explicit Expected(const BackwardCase& data) {
    for (std::size_t i = 0; i < data.inputs.size(); ++i) {
      truth.push_back(mamba3_scan_backward_ref(widen(data.inputs[i]), widen(data.starts[i]),
                                               widen(data.grad_y[i]), widen(data.grad_states[i])));
      naive.push_back(mamba3_scan_backward_ref(data.inputs[i], data.starts[i], data.grad_y[i],
                                               data.grad_states[i]));
    }
  }
};

// Of all sequences together, as long as one alone may be a number or two.
void expect_right(const std::vector<BackwardResult>& got, const Expected& expected) {
  const auto widths = column_widths(expected.truth[0].inputs.dims);
  std::int64_t stride = 0;
  for (const auto& [name, width] : widths) stride += width;
  std::vector<float> rows;
  std::vector<double> naive_rows, true_rows;
  for (std::size_t i = 0; i < got.size(); ++i) {
    append(rows, got[i].columns);
    append(naive_rows, rows_of(expected.naive[i].inputs));
    append(true_rows, rows_of(expected.truth[i].inputs));
  }
  std::int64_t begin = 0;
  for (const auto& [name, width] : widths) {
    expect_close(name, columns_of(rows, stride, begin, width),
                 columns_of(naive_rows, stride, begin, width),
                 columns_of(true_rows, stride, begin, width));
    begin += width;
  }
  const auto check_state = [&](const char* name, auto part, auto wide_part) {
    std::vector<float> all, naive;
    std::vector<double> truth;
    for (std::size_t i = 0; i < got.size(); ++i) {
      append(all, got[i].state.*part);
      append(naive, expected.naive[i].state.*part);
      append(truth, expected.truth[i].state.*wide_part);
    }
    expect_close(name, all, naive, truth);
  };
  using F = Mamba3RefState<float>;
  using D = Mamba3RefState<double>;
  check_state("state angle", &F::angle, &D::angle);
  check_state("state ssm", &F::ssm, &D::ssm);
  check_state("state k", &F::k, &D::k);
  check_state("state v", &F::v, &D::v);
}

void expect_right(ParamGradients got, const Expected& expected) {
  const auto check = [&](const char* name, const std::vector<float>& values, auto part,
                         auto wide_part) {
    std::vector<float> naive(values.size());
    std::vector<double> truth(values.size());
    for (std::size_t s = 0; s < expected.truth.size(); ++s) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        naive[i] += (expected.naive[s].inputs.*part)[i];
        truth[i] += (expected.truth[s].inputs.*wide_part)[i];
      }
    }
    expect_close(name, values, naive, truth);
  };
  using F = Mamba3RefInputs<float>;
  using D = Mamba3RefInputs<double>;
  check("dt_bias", got.dt_bias, &F::dt_bias, &D::dt_bias);
  check("D", got.skip, &F::skip, &D::skip);
  check("B_bias", got.in_b_bias, &F::in_b_bias, &D::in_b_bias);
  check("C_bias", got.out_c_bias, &F::out_c_bias, &D::out_c_bias);
  check("B_norm", got.in_b_norm, &F::in_b_norm, &D::in_b_norm);
  check("C_norm", got.out_c_norm, &F::out_c_norm, &D::out_c_norm);
  check("mimo_x", got.mimo_x, &F::mimo_x, &D::mimo_x);
  check("mimo_z", got.mimo_z, &F::mimo_z, &D::mimo_z);
  check("mimo_o", got.mimo_o, &F::mimo_o, &D::mimo_o);
  check("norm", got.out_norm, &F::out_norm, &D::out_norm);
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
    const Gradients got = run(data);
    expect_right(got.sequences, expected);
    expect_right(got.params, expected);
  });
}

TEST_P(ScanBackward, LongRunOverSeveralSlabsAgreesWithTheOracle) {
  const std::int64_t slab = mamba3_scan_backward_slab_tokens(GetParam());
  const BackwardCase data(GetParam(), {next_prime(2 * slab)}, 52);
  const Expected expected(data);
  const Gradients got = run(data, {.threads = 2, .which = {}});
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
    const Gradients all = run(data);
    for (const int threads : {2, 5}) {
      const Gradients again = run(data, {.threads = threads, .which = {}});
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
    const Gradients some = run(data, {.threads = 2, .which = {4, 3, 2}});
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
      const Gradients got = run(data, {.threads = 3, .which = {}});
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
  const Gradients got = run(data, {.threads = 2, .which = {}});
  expect_right(got.sequences, expected);
  expect_right(got.params, expected);
}

TEST(ScanBackwardExtremes, StrongAndWeakDecaysAndHugeSteps) {
  for (const std::int64_t rank : {1, 2, 4}) {
    BackwardCase data(small_dims(rank), {150}, 58);
    Mamba3RefInputs<float>& in = data.inputs[0];
    Random random(59);
    const auto draw = [&](std::vector<float>& to, const std::vector<float>& from) {
      for (float& v : to) {
        if (random.below(3) == 0) v = from[random.below(std::ssize(from))];
      }
    };
    draw(in.dt_raw, {-800, -90, -30, 0, 3, 30});
    draw(in.decay_raw, {-1e6f, -2e4f, -1, 0, 50, 1000});
    draw(in.trap_raw, {-100, -30, 0, 30, 100});
    draw(in.angle_raw, {-1e4f, -8, 0, 0.3f, 8, 50});
    for (float& v : in.in_b) v *= random.below(9) == 0 ? 1e-10f : 1.0f;
    for (float& v : in.out_c) v *= random.below(9) == 0 ? 1e10f : 1.0f;
    const Expected expected(data);
    for_each_target([&] {
      const Gradients got = run(data);
      expect_right(got.sequences, expected);
      expect_right(got.params, expected);
    });
  }
}

TEST(ScanBackwardSums, AddsToTheGradientsOfParameters) {
  const BackwardCase data(small_dims(2), {40, 5}, 60);
  const Gradients from_zero = run(data);
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
  const Gradients got = run(data);
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
