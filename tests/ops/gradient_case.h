// What the tests of backward ops share: the tolerance rule, and finite differences of an oracle.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/tolerance.h"
#include "op_test_helpers.h"

namespace mamba3::testing {

inline std::vector<double> doubles(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

// Few ids come often, most seldom, as in text.
inline std::vector<std::int32_t> random_ids(std::int64_t count, std::int64_t v) {
  std::mt19937 engine(3);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<std::int32_t>(std::pow(uniform(engine), 4) * static_cast<double>(v)));
  }
  return ids;
}

inline void expect_within(const std::vector<float>& got, const std::vector<float>& plain,
                          const std::vector<double>& truth, const std::string& what,
                          double rounding = kFloatRounding) {
  const Comparison c = compare(std::span<const float>(got), std::span<const float>(plain),
                               std::span<const double>(truth), rounding);
  EXPECT_TRUE(c.ok) << what << ": error " << c.error << ", plain " << c.naive_error << ", bound "
                    << c.bound;
}

// `gradient` is that of `loss` with respect to `values`, which `loss` reads: compared with a
// difference quotient of fourth order along a random direction.
inline void expect_slope(std::vector<double>& values, const std::vector<double>& gradient,
                         const std::function<double()>& loss, const std::string& what) {
  constexpr double kStep = 1e-4;
  ASSERT_EQ(values.size(), gradient.size()) << what;
  if (values.empty()) return;
  const std::vector<double> before = values;
  const auto direction = doubles(random_floats(std::ssize(values), 77));
  const auto at = [&](double step) {
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = before[i] + step * direction[i];
    return loss();
  };
  const double slope =
      (8 * (at(kStep) - at(-kStep)) - (at(2 * kStep) - at(-2 * kStep))) / (12 * kStep);
  values = before;
  double expected = 0, squares = 0;
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    expected += gradient[i] * direction[i];
    squares += gradient[i] * gradient[i];
  }
  // What is left is rounding of the loss, and the fourth power of the step.
  EXPECT_NEAR(expected, slope, 1e-8 * (1 + std::sqrt(squares))) << what;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace mamba3::testing
