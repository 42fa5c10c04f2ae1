#include "ops/swiglu/swiglu.h"

#include "ops/op_test_helpers.h"
#include "ops/swiglu/swiglu_ref.h"

namespace mamba3 {
namespace {

// One rounding to fp32, after double arithmetic whose own error is 1e-9 of that.
constexpr double kOneRounding = 0x1p-24 * (1 + 1e-2);

void expect_near_oracle(const std::vector<float>& h, std::int64_t rows, std::int64_t f,
                        Context& ctx) {
  const auto expected = swiglu_ref({h.begin(), h.end()}, rows, f);
  PaddedRows in(h, rows, 2 * f, 3);
  PaddedRows out(rows, f, 1);
  swiglu({in.view, out.view}, ctx);
  const auto y = out.values();
  ASSERT_EQ(y.size(), expected.size());
  for (std::size_t i = 0; i < y.size(); ++i) {
    const auto rounded = static_cast<float>(expected[i]);
    if (!std::isfinite(rounded)) {
      ASSERT_EQ(std::isnan(y[i]), std::isnan(rounded)) << i;
      ASSERT_TRUE(std::isnan(y[i]) || y[i] == rounded) << i;
      continue;
    }
    // Denormal results are spaced 2^-149 apart.
    ASSERT_NEAR(y[i], expected[i], std::abs(expected[i]) * kOneRounding + 0x1p-149)
        << "f " << f << " at " << i;
  }
  EXPECT_TRUE(out.gap_untouched());
}

TEST(Swiglu, AgreesWithTheOracle) {
  for_each_target([] {
    Context ctx(with_threads(2));
    for (const std::int64_t f : {1, 2, 7, 8, 9, 31, 64, 1500}) {
      for (const std::int64_t rows : {0, 1, 2, 33}) {
        expect_near_oracle(random_floats(rows * 2 * f, 7, 4), rows, f, ctx);
      }
    }
  });
}

TEST(Swiglu, EverySizeOfTheGate) {
  for_each_target([] {
    Context ctx(with_threads(1));
    std::vector<float> h;
    std::vector<float> gates = {0.0f, -0.0f, kNan, kInf, -kInf, 3e38f, -3e38f, 1e-40f, -1e-40f};
    for (float g = 1e-6f; g < 2000; g *= 1.07f) {
      gates.push_back(g);
      gates.push_back(-g);
    }
    for (const float up : {1.5f, -1e20f, 0.0f, kInf, kNan}) {
      h.insert(h.end(), gates.size(), up);
      h.insert(h.end(), gates.begin(), gates.end());
    }
    expect_near_oracle(h, 5, static_cast<std::int64_t>(gates.size()), ctx);
  });
}

TEST(Swiglu, AValuesBitsDependOnNothingElse) {
  const std::int64_t f = 1503;
  const auto h = random_floats(40 * 2 * f, 9, 3);
  PaddedRows in(h, 40, 2 * f, 0);
  PaddedRows all(40, f, 0);
  Context two(with_threads(2));
  swiglu({in.view, all.view}, two);
  Context one(with_threads(1));
  PaddedRows single(1, f, 0);
  swiglu({in.view.slice(39, 40), single.view}, one);
  EXPECT_TRUE(same_bits(&single.view(0, 0), &all.view(39, 0), f));
  // The last columns alone: they take another way through the vectors there.
  const std::vector<float> last = {h[f - 1], h[2 * f - 1]};
  PaddedRows pair(last, 1, 2, 0);
  PaddedRows lone(1, 1, 0);
  swiglu({pair.view, lone.view}, one);
  EXPECT_EQ(lone.view(0, 0), all.view(0, f - 1));
}

TEST(Swiglu, RefusesWrongShapes) {
  Context ctx(with_threads(1));
  PaddedRows in(2, 8, 0);
  PaddedRows out(2, 5, 0);
  EXPECT_NE(error_of([&] { swiglu({in.view, out.view}, ctx); }).find("[2, 8]"), std::string::npos);
}

}  // namespace
}  // namespace mamba3
