#include "ops/swiglu_backward/swiglu_backward.h"

#include "gradient_case.h"
#include "ops/swiglu/swiglu.h"
#include "ops/swiglu/swiglu_ref.h"
#include "ops/swiglu_backward/swiglu_backward_ref.h"

namespace mamba3 {
namespace {

using testing::dot;
using testing::doubles;
using testing::expect_slope;

// One rounding to fp32, after double arithmetic whose own error is 1e-9 of the largest term: the
// two of grad_gate cancel near gate = -1.28.
void expect_near_oracle(const std::vector<float>& h, const std::vector<float>& grad_y,
                        std::int64_t rows, std::int64_t f, Context& ctx) {
  const auto expected = swiglu_backward_ref(doubles(h), doubles(grad_y), rows, f);
  const PaddedRows in(h, rows, 2 * f, 3), grad(grad_y, rows, f, 1), out(rows, 2 * f, 2);
  swiglu_backward({in.view, grad.view, out.view}, ctx);
  const auto got = out.values();
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto rounded = static_cast<float>(expected[i]);
    if (!std::isfinite(rounded)) {
      ASSERT_TRUE(std::isnan(rounded) ? std::isnan(got[i]) : got[i] == rounded)
          << i << ": " << got[i] << ", expected " << rounded;
      continue;
    }
    const auto at = static_cast<std::int64_t>(i);
    const double term = std::abs(static_cast<double>(grad_y[at / (2 * f) * f + at % f]) *
                                 h[at / (2 * f) * 2 * f + at % f]);
    const double slack = std::isfinite(term) ? term * 1e-9 : 0;
    ASSERT_NEAR(got[i], expected[i], std::abs(expected[i]) * 0x1.02p-24 + slack + 0x1p-149)
        << "f " << f << " at " << i;
  }
  EXPECT_TRUE(out.gap_untouched());
}

TEST(SwigluBackward, AgreesWithTheOracle) {
  for_each_target([] {
    Context ctx(with_threads(2));
    for (const std::int64_t f : {1, 2, 7, 8, 9, 31, 64, 1500}) {
      for (const std::int64_t rows : {0, 1, 2, 33}) {
        expect_near_oracle(random_floats(rows * 2 * f, 7, 4), random_floats(rows * f, 8), rows, f,
                           ctx);
      }
    }
  });
}

TEST(SwigluBackward, EverySizeOfTheGate) {
  for_each_target([] {
    Context ctx(with_threads(1));
    std::vector<float> gates = {0.0f, -0.0f, kNan, 3e38f, -3e38f, 1e-40f, -1e-40f};
    for (float g = 1e-6f; g < 2000; g *= 1.07f) {
      gates.push_back(g);
      gates.push_back(-g);
    }
    std::vector<float> h, grad_y;
    for (const float up : {1.5f, -1e20f, 0.0f, kNan}) {
      h.insert(h.end(), gates.size(), up);
      h.insert(h.end(), gates.begin(), gates.end());
      grad_y.insert(grad_y.end(), gates.size(), -0.75f);
    }
    expect_near_oracle(h, grad_y, 4, std::ssize(gates), ctx);
  });
}

TEST(SwigluBackwardRef, EqualsFiniteDifferences) {
  constexpr std::int64_t kRows = 3, kF = 9;
  auto h = doubles(random_floats(kRows * 2 * kF, 1, 2));
  const auto grad_y = doubles(random_floats(kRows * kF, 2));
  const auto loss = [&] { return dot(swiglu_ref(h, kRows, kF), grad_y); };
  expect_slope(h, swiglu_backward_ref(h, grad_y, kRows, kF), loss, "h");
}

TEST(SwigluBackward, BitsDependOnNoThreadAndTheResultMayLieOnItsInput) {
  constexpr std::int64_t kRows = 40, kF = 1503;
  const auto h = random_floats(kRows * 2 * kF, 9, 3);
  const PaddedRows in(h, kRows, 2 * kF, 1), out(kRows, 2 * kF, 0);
  const PaddedRows grad(random_floats(kRows * kF, 10), kRows, kF, 0);
  Context two(with_threads(2)), one(with_threads(1));
  swiglu_backward({in.view, grad.view, out.view}, two);
  swiglu_backward({in.view, grad.view, in.view}, one);
  EXPECT_TRUE(same_bits(in.values(), out.values()));
}

TEST(SwigluBackward, GivesTheForwardOpsBitsAsWell) {
  for_each_target([] {
    constexpr std::int64_t kRows = 3, kF = 1503;
    const PaddedRows in(random_floats(kRows * 2 * kF, 9, 3), kRows, 2 * kF, 1);
    const PaddedRows grad(random_floats(kRows * kF, 10), kRows, kF, 0);
    const PaddedRows out(kRows, 2 * kF, 0), y(kRows, kF, 2), expected(kRows, kF, 0);
    Context ctx(with_threads(1));
    swiglu({in.view, expected.view}, ctx);
    swiglu_backward({in.view, grad.view, out.view, y.view}, ctx);
    EXPECT_TRUE(same_bits(y.values(), expected.values()));
    EXPECT_TRUE(y.gap_untouched());
  });
}

TEST(SwigluBackward, RefusesWrongShapes) {
  Context ctx(with_threads(1));
  const PaddedRows in(2, 8, 0), grad(2, 5, 0), out(2, 8, 0), good(2, 4, 0);
  EXPECT_NE(error_of([&] {
              swiglu_backward({in.view, good.view, out.view, grad.view}, ctx);
            }).find("y is [2, 5]"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              swiglu_backward({in.view, grad.view, out.view}, ctx);
            }).find("[2, 5]"),
            std::string::npos);
}

}  // namespace
}  // namespace mamba3
