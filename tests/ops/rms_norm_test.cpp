#include "ops/rms_norm/rms_norm.h"

#include "core/thread_pool.h"
#include "ops/op_test_helpers.h"
#include "ops/rms_norm/rms_norm_ref.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kWidths[] = {1, 3, 7, 16, 63, 64, 65, 127, 768, 1000};

// residual * rstd * weight in fp32: rstd is rounded, two products are, and the sum residual +
// hidden is exact in what the oracle is given.
constexpr double kRoundings = 3.5 * 0x1p-24;

struct Case {
  Case(std::int64_t rows_in, std::int64_t d_in, bool with_hidden, std::int64_t gap)
      : rows(rows_in),
        d(d_in),
        residual(random_floats(rows * d, 1, 3), rows, d, gap),
        hidden(random_floats(rows * d, 2), rows, d, gap + 1),
        weight(random_floats(d, 3)),
        y(rows, d, gap + 2) {
    args.residual = residual.view;
    if (with_hidden) args.hidden = hidden.view;
    args.weight = weight.data();
    args.y = y.view;
  }
  std::vector<double> expected() const {
    std::vector<double> sum;
    const auto added = hidden.values();
    for (const float value : residual.values()) {
      const bool add = args.hidden.data != nullptr;
      sum.push_back(value + (add ? added[sum.size()] : 0.0f));
    }
    return rms_norm_ref(sum, {weight.begin(), weight.end()}, rows, d, args.eps);
  }
  std::int64_t rows, d;
  PaddedRows residual, hidden;
  std::vector<float> weight;
  PaddedRows y;
  RmsNormArgs args;
};

TEST(RmsNorm, AgreesWithTheOracle) {
  for_each_target([] {
    Context ctx(with_threads(2));
    for (const std::int64_t d : kWidths) {
      for (const std::int64_t rows : {0, 1, 2, 65}) {
        for (const bool with_hidden : {false, true}) {
          Case c(rows, d, with_hidden, 5);
          const auto expected = c.expected();
          auto residual = c.residual.values();
          rms_norm(c.args, ctx);
          const auto y = c.y.values();
          const auto added = c.hidden.values();
          for (std::size_t i = 0; i < y.size(); ++i) {
            ASSERT_NEAR(y[i], expected[i], std::abs(expected[i]) * kRoundings) << d << " " << rows;
            if (with_hidden) residual[i] += added[i];
          }
          EXPECT_TRUE(same_bits(c.residual.values(), residual));
          EXPECT_TRUE(c.y.gap_untouched() && c.residual.gap_untouched());
        }
      }
    }
  });
}

TEST(RmsNorm, TheSumMayGoElsewhere) {
  Context ctx(with_threads(2));
  for (const std::int64_t d : kWidths) {
    Case in_place(65, d, true, 3), apart(65, d, true, 3);
    const auto residual = apart.residual.values();
    PaddedRows sum(65, d, 2);
    apart.args.sum = sum.view;
    rms_norm(in_place.args, ctx);
    rms_norm(apart.args, ctx);
    EXPECT_TRUE(same_bits(sum.values(), in_place.residual.values()));
    EXPECT_TRUE(same_bits(apart.y.values(), in_place.y.values()));
    EXPECT_TRUE(same_bits(apart.residual.values(), residual));
    EXPECT_TRUE(sum.gap_untouched());
  }
}

TEST(RmsNorm, ARowsBitsDependOnNothingElse) {
  for (const std::int64_t d : {7, 768}) {
    Case all(300, d, true, 3);
    Context two(with_threads(2));
    rms_norm(all.args, two);
    Context one(with_threads(1));
    for (const std::int64_t row : {0, 17, 299}) {
      Case again(300, d, true, 3);
      RmsNormArgs args = again.args;
      args.residual = args.residual.slice(row, row + 1);
      args.hidden = args.hidden.slice(row, row + 1);
      args.y = args.y.slice(row, row + 1);
      rms_norm(args, one);
      EXPECT_TRUE(same_bits(&again.y.view(row, 0), &all.y.view(row, 0), d));
    }
  }
}

// The sum of squares of such rows over- or underflows in fp32.
TEST(RmsNorm, HugeAndTinyRows) {
  Context ctx(with_threads(1));
  for (const float size : {1e30f, 1e-30f}) {
    Case c(1, 64, false, 0);
    for (std::int64_t i = 0; i < 64; ++i) c.residual.view(0, i) = size;
    c.args.eps = 0;
    rms_norm(c.args, ctx);
    for (std::int64_t i = 0; i < 64; ++i) EXPECT_NEAR(c.y.view(0, i), c.weight[i], 1e-6);
  }
}

TEST(RmsNorm, KeepsNanAndInfinityInTheirRow) {
  Context ctx(with_threads(1));
  for (const float bad : {kNan, kInf, -kInf}) {
    Case c(3, 65, false, 1);
    c.residual.view(1, 64) = bad;
    const auto expected = c.expected();
    rms_norm(c.args, ctx);
    const auto y = c.y.values();
    for (std::size_t i = 0; i < y.size(); ++i) {
      EXPECT_EQ(std::isnan(y[i]), std::isnan(expected[i])) << i << " " << bad;
    }
  }
}

TEST(RmsNorm, OutputMayBeTheHiddenBuffer) {
  Context ctx(with_threads(1));
  Case apart(5, 65, true, 0);
  Case shared(5, 65, true, 0);
  rms_norm(apart.args, ctx);
  shared.args.y = shared.hidden.view;
  rms_norm(shared.args, ctx);
  EXPECT_TRUE(same_bits(apart.y.values(), shared.hidden.values()));
}

TEST(RmsNorm, RefusesWrongArguments) {
  Context ctx(with_threads(1));
  Case c(2, 8, true, 0);
  RmsNormArgs args = c.args;
  args.y.shape[1] = 7;
  EXPECT_NE(error_of([&] { rms_norm(args, ctx); }).find("[2, 7]"), std::string::npos);
  args = c.args;
  args.hidden.shape[0] = 3;
  EXPECT_NE(error_of([&] { rms_norm(args, ctx); }).find("[3, 8]"), std::string::npos);
  args = c.args;
  args.weight = nullptr;
  error_of([&] { rms_norm(args, ctx); });
  args = c.args;
  args.eps = kNan;
  error_of([&] { rms_norm(args, ctx); });
  args = c.args;
  args.y.stride[1] = 2;
  error_of([&] { rms_norm(args, ctx); });
}

}  // namespace
}  // namespace mamba3
