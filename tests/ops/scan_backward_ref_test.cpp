#include "ops/mamba3_scan_backward/mamba3_scan_backward_ref.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "mamba3_case.h"

namespace mamba3 {
namespace {

using testing::awkward_dims;
using testing::describe;
using testing::Random;
using testing::random_inputs;
using testing::random_state;
using testing::widen;

using Doubles = std::vector<double>;
using Inputs = Mamba3RefInputs<double>;
using State = Mamba3RefState<double>;

// Everything that the scan reads, by name.
std::vector<std::pair<const char*, Doubles*>> tensors(Inputs& in, State& state) {
  return {{"x", &in.x},
          {"z", &in.z},
          {"B", &in.in_b},
          {"C", &in.out_c},
          {"dt", &in.dt_raw},
          {"A", &in.decay_raw},
          {"trap", &in.trap_raw},
          {"angle", &in.angle_raw},
          {"dt_bias", &in.dt_bias},
          {"D", &in.skip},
          {"B_bias", &in.in_b_bias},
          {"C_bias", &in.out_c_bias},
          {"B_norm", &in.in_b_norm},
          {"C_norm", &in.out_c_norm},
          {"mimo_x", &in.mimo_x},
          {"mimo_z", &in.mimo_z},
          {"mimo_o", &in.mimo_o},
          {"norm", &in.out_norm},
          {"state0.angle", &state.angle},
          {"state0.ssm", &state.ssm},
          {"state0.k", &state.k},
          {"state0.v", &state.v}};
}

double dot(const Doubles& a, const Doubles& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double loss(const Inputs& in, State state, const Doubles& grad_y, const State& grad_state) {
  const Doubles y = mamba3_scan_ref(in, state);
  return dot(y, grad_y) + dot(state.angle, grad_state.angle) + dot(state.ssm, grad_state.ssm) +
         dot(state.k, grad_state.k) + dot(state.v, grad_state.v);
}

class ScanBackwardRef : public ::testing::TestWithParam<Mamba3Dims> {};

// Along a random direction of each tensor.
TEST_P(ScanBackwardRef, EqualsFiniteDifferences) {
  constexpr double kStep = 1e-5;
  for (const std::int64_t tokens : {0, 1, 2, 9}) {
    Random random(static_cast<std::uint64_t>(31 + tokens));
    Inputs in = widen(random_inputs(GetParam(), tokens, random));
    State state = widen(random_state(GetParam(), random));
    const State grad_state = widen(random_state(GetParam(), random));
    const Doubles grad_y = widen(random.normal(static_cast<std::int64_t>(in.x.size())));
    auto grads = mamba3_scan_backward_ref(in, state, grad_y, grad_state);
    const auto found = tensors(grads.inputs, grads.state);
    const auto values = tensors(in, state);
    for (std::size_t i = 0; i < values.size(); ++i) {
      Doubles& value = *values[i].second;
      if (value.empty()) continue;
      const Doubles before = value, direction = widen(random.normal(std::ssize(value)));
      const auto at = [&](double step) {
        for (std::size_t j = 0; j < value.size(); ++j) value[j] = before[j] + step * direction[j];
        return loss(in, state, grad_y, grad_state);
      };
      // Of fourth order: what is left is rounding.
      const double slope =
          (8 * (at(kStep) - at(-kStep)) - (at(2 * kStep) - at(-2 * kStep))) / (12 * kStep);
      value = before;
      const double scale = std::sqrt(dot(*found[i].second, *found[i].second) *
                                     dot(direction, direction) / std::ssize(direction));
      EXPECT_NEAR(dot(*found[i].second, direction), slope, 1e-6 * (scale + std::abs(slope)) + 1e-6)
          << values[i].first << ", " << tokens << " tokens";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ScanBackwardRef, ::testing::ValuesIn(awkward_dims()),
                         [](const auto& each) { return describe(each.param); });

}  // namespace
}  // namespace mamba3
