#include "ops/mamba3_scan/mamba3_authors_ref.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/tolerance.h"
#include "mamba3/error.h"
#include "mamba3_case.h"

namespace mamba3 {
namespace {

using testing::awkward_dims;
using testing::describe;
using testing::Random;
using testing::random_inputs;
using testing::random_state;
using testing::widen;

// Root mean squares of a run's errors against the oracle.
struct Errors {
  double y = 0, angle = 0, ssm = 0, k = 0, v = 0;
};

Errors errors_of(const Mamba3RefInputs<float>& in, const Mamba3RefState<float>& start,
                 AuthorsPath path, bool rounds) {
  Mamba3RefState<float> state = start;
  const std::vector<float> y = mamba3_authors_ref(in, state, path, rounds);
  Mamba3RefState<double> exact = widen(start);
  const std::vector<double> truth = mamba3_scan_ref(widen(in), exact);
  const auto error = [](const std::vector<float>& got, const std::vector<double>& right,
                        ErrorMetric metric) {
    return rms_error(std::span<const float>(got), std::span<const double>(right), metric);
  };
  return {error(y, truth, ErrorMetric::kRelative),
          error(state.angle, exact.angle, ErrorMetric::kCircle),
          error(state.ssm, exact.ssm, ErrorMetric::kRelative),
          error(state.k, exact.k, ErrorMetric::kRelative),
          error(state.v, exact.v, ErrorMetric::kRelative)};
}

class AuthorsRef : public ::testing::TestWithParam<Mamba3Dims> {};

// What is left without the roundings is the recurrence, whatever the chunks.
TEST_P(AuthorsRef, WithoutItsRoundingsIsTheRecurrence) {
  Random random(31);
  for (const std::int64_t tokens : {1, 7, 15, 16, 17, 63, 64, 65, 131}) {
    const Mamba3RefInputs<float> in = random_inputs(GetParam(), tokens, random);
    const Mamba3RefState<float> start = random_state(GetParam(), random);
    for (const AuthorsPath path : {AuthorsPath::kPrefill, AuthorsPath::kStep}) {
      const Errors errors = errors_of(in, start, path, false);
      const char* name = path == AuthorsPath::kStep ? "step" : "prefill";
      for (const double error : {errors.y, errors.ssm, errors.k, errors.angle}) {
        EXPECT_LT(error, 2e-5) << name << " of " << tokens;
      }
      EXPECT_EQ(errors.v, 0) << name << " of " << tokens;
    }
  }
}

TEST_P(AuthorsRef, NoTokensChangeNothing) {
  Random random(32);
  const Mamba3RefInputs<float> in = random_inputs(GetParam(), 0, random);
  const Mamba3RefState<float> start = random_state(GetParam(), random);
  for (const AuthorsPath path : {AuthorsPath::kPrefill, AuthorsPath::kStep}) {
    Mamba3RefState<float> state = start;
    EXPECT_TRUE(mamba3_authors_ref(in, state, path).empty());
    EXPECT_EQ(state.ssm, start.ssm);
    EXPECT_EQ(state.angle, start.angle);
    EXPECT_EQ(state.k, start.k);
  }
}

// The authors have no fixed steps.
std::vector<Mamba3Dims> authors_dims() {
  std::vector<Mamba3Dims> out = awkward_dims();
  std::erase_if(out, [](const Mamba3Dims& dims) { return dims.fixed_steps; });
  return out;
}

INSTANTIATE_TEST_SUITE_P(Sizes, AuthorsRef, ::testing::ValuesIn(authors_dims()),
                         [](const auto& p) { return describe(p.param); });

// Columns that bf16 holds, so that only the kernels' own roundings are seen.
Mamba3RefInputs<float> bf16_inputs(const Mamba3Dims& dims, std::int64_t tokens) {
  Random random(33);
  Mamba3RefInputs<float> in = random_inputs(dims, tokens, random);
  for (auto* column : {&in.x, &in.z, &in.in_b, &in.out_c, &in.dt_raw, &in.decay_raw, &in.trap_raw,
                       &in.angle_raw}) {
    for (float& v : *column) v = to_float(to_bf16(v));
  }
  return in;
}

// SISO keeps angles in bf16 in prefill alone, MIMO never; K is rounded everywhere, once or more.
TEST(AuthorsRefRoundings, LieWhereTheirKernelsHaveThem) {
  for (const std::size_t which : {0, 1}) {
    const Mamba3Dims dims = awkward_dims()[which];
    const Mamba3RefInputs<float> in = bf16_inputs(dims, 130);
    const auto zeros = Mamba3RefState<float>::zeros(dims);
    const Errors prefill = errors_of(in, zeros, AuthorsPath::kPrefill, true);
    const Errors step = errors_of(in, zeros, AuthorsPath::kStep, true);
    EXPECT_LT(step.angle, 1e-4);
    if (dims.mimo) {
      EXPECT_LT(prefill.angle, 1e-4);
    } else {
      EXPECT_GT(prefill.angle, 1e-3);  // a bf16 near 2 pi is known to 1.6e-2
      EXPECT_LT(prefill.angle, 1e-2);
    }
    EXPECT_EQ(step.v, 0);
    EXPECT_EQ(prefill.v, 0);
    for (const double error : {step.k, prefill.k, step.ssm, prefill.ssm, step.y, prefill.y}) {
      EXPECT_GT(error, 5e-4);
      EXPECT_LT(error, 2e-2);
    }
    EXPECT_GT(prefill.y, step.y);
  }
}

TEST(AuthorsRefRoundings, RefusesWrongSizes) {
  const Mamba3Dims dims = awkward_dims()[1];
  Mamba3RefInputs<float> in = bf16_inputs(dims, 3);
  auto state = Mamba3RefState<float>::zeros(dims);
  in.mimo_z.pop_back();
  EXPECT_THROW(mamba3_authors_ref(in, state, AuthorsPath::kPrefill), Error);
  EXPECT_THROW(mamba3_authors_ref(in, state, AuthorsPath::kStep), Error);
}

}  // namespace
}  // namespace mamba3
