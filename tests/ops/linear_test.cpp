#include "ops/linear/linear.h"

#include <tuple>

#include "core/arena.h"
#include "ops/linear/linear_ref.h"
#include "ops/linear/processor.h"
#include "ops/op_test_helpers.h"

namespace mamba3 {
namespace {

// Weights [n, k] of either type; `values` is what they stand for.
struct Weights {
  Weights(std::int64_t n, std::int64_t k, DType dtype, std::uint64_t seed)
      : values(random_floats(n * k, seed)) {
    ref.dtype = dtype;
    ref.shape = {n, k};
    if (dtype == DType::kBf16) {
      for (float& value : values) {
        bf16.push_back(to_bf16(value));
        value = to_float(bf16.back());
      }
      ref.data = reinterpret_cast<const std::byte*>(bf16.data());
    } else {
      ref.data = reinterpret_cast<const std::byte*>(values.data());
    }
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;
  void set(std::int64_t at, float value) {
    values[at] = value;
    if (!bf16.empty()) bf16[at] = to_bf16(value);
  }
  std::vector<float> values;
  std::vector<Bf16> bf16;
  TensorRef ref;
};

// How far fp32 sums of k products may be off: each of at most k + 1 roundings is half a unit of a
// partial sum, which is no larger than the sum of magnitudes. Both paths add in a few dozen
// separate partial sums, so the bound is generous.
double sum_error(const std::vector<float>& x, const std::vector<float>& w, std::int64_t row,
                 std::int64_t out, std::int64_t k) {
  double magnitude = 0;
  for (std::int64_t i = 0; i < k; ++i) {
    magnitude += std::abs(static_cast<double>(x[row * k + i]) * w[out * k + i]);
  }
  return magnitude * 0x1p-24 * (static_cast<double>(k) / 16 + 6);
}

class LinearCase : public ::testing::TestWithParam<std::tuple<LinearPath, Compute, DType>> {
 protected:
  LinearArgs make(const PaddedRows& x, const Weights& w, const PaddedRows& y) const {
    return {x.view, w.ref, y.view, std::get<1>(GetParam()), std::get<0>(GetParam())};
  }
  void expect_near_oracle(std::int64_t rows, std::int64_t n, std::int64_t k, Context& ctx) const {
    auto values = random_floats(rows * k, 1);
    const Weights w(n, k, std::get<2>(GetParam()), 2);
    const PaddedRows x(values, rows, k, 3);
    const PaddedRows y(rows, n, 5);
    linear(make(x, w, y), ctx);
    const auto expected = linear_ref(values, w.values, rows, n, k, std::get<1>(GetParam()));
    for (std::int64_t i = 0; i < rows * n; ++i) {
      const double bound = 1.01 * sum_error(values, w.values, i / n, i % n, k);
      ASSERT_NEAR(y.view(i / n, i % n), expected[i], bound)
          << "rows " << rows << " n " << n << " k " << k << " at " << i / n << ", " << i % n;
    }
    EXPECT_TRUE(y.gap_untouched()) << "rows " << rows << " n " << n << " k " << k;
  }
};

TEST_P(LinearCase, AgreesWithTheOracle) {
  Context ctx(with_threads(2));
  for (const std::int64_t k : {1, 7, 31, 63, 64, 65, 127}) {
    for (const std::int64_t n : {1, 7, 63, 64, 65, 131}) {
      for (const std::int64_t rows : {0, 1, 2, 5, 16, 17}) expect_near_oracle(rows, n, k, ctx);
    }
  }
  for (const std::int64_t rows : {15, 64, 65, 300}) expect_near_oracle(rows, 67, 97, ctx);
  expect_near_oracle(3, 301, 1537, ctx);
  for (const std::int64_t rows : {13, 97}) expect_near_oracle(rows, 37, 1021, ctx);  // 4 KiB apart
  expect_near_oracle(1, 16, 0, ctx);
}

TEST_P(LinearCase, EveryInstructionSet) {
  allow_bf16_products(false);
  for_each_target([this] {
    Context ctx(with_threads(2));
    for (const std::int64_t k : {5, 64, 77}) {
      for (const std::int64_t rows : {1, 3, 8, 21}) expect_near_oracle(rows, 37, k, ctx);
    }
  });
  allow_bf16_products(true);
}

// Rows are computed together with any others, anywhere, on any number of threads.
TEST_P(LinearCase, ARowsBitsDependOnNothingElse) {
  for (const auto& [n, k] : {std::pair<std::int64_t, std::int64_t>{131, 197}, {520, 768}}) {
    const std::int64_t rows = 300;
    const Weights w(n, k, std::get<2>(GetParam()), 2);
    const PaddedRows x(random_floats(rows * k, 1), rows, k, 1);
    const PaddedRows all(rows, n, 0);
    Context two(with_threads(2));
    linear(make(x, w, all), two);
    for (const int threads : {1, 3}) {
      Context ctx(with_threads(threads));
      for (const std::int64_t count : {1, 2, 3, 5, 8, 16, 17, 33, 64, 65, 129, 256, 257}) {
        const PaddedRows part(count, n, 2);
        LinearArgs args = make(x, w, part);
        args.x = x.view.slice(rows - count, rows);
        linear(args, ctx);
        for (std::int64_t row = 0; row < count; ++row) {
          ASSERT_TRUE(same_bits(&part.view(row, 0), &all.view(rows - count + row, 0), n))
              << "row " << row << " of " << count << " threads " << threads;
        }
      }
    }
  }
}

// Rows that share a set of the cache are multiplied elsewhere.
TEST_P(LinearCase, TheDistanceOfRowsChangesNoBit) {
  const std::int64_t rows = 110, n = 37, k = 1021;
  const std::vector<float> values = random_floats(rows * k, 1);
  const Weights w(n, k, std::get<2>(GetParam()), 2);
  const PaddedRows near(values, rows, k, 0), apart(values, rows, k, 3);
  const PaddedRows y(rows, n, 0), z(rows, n, 0);
  Context ctx(with_threads(2));
  linear(make(near, w, y), ctx);
  linear(make(apart, w, z), ctx);
  EXPECT_TRUE(same_bits(&y.view(0, 0), &z.view(0, 0), rows * n));
}

// An output does not depend on its neighbours either.
TEST_P(LinearCase, SomeOutputsAlone) {
  const std::int64_t n = 300;
  const std::int64_t k = 129;
  const Weights w(n, k, std::get<2>(GetParam()), 2);
  Context ctx(with_threads(2));
  for (const std::int64_t rows : {1, 6, 40}) {
    const PaddedRows x(random_floats(rows * k, 1), rows, k, 1);
    const PaddedRows all(rows, n, 0);
    linear(make(x, w, all), ctx);
    for (const std::int64_t begin : {1, 37, 299}) {
      const PaddedRows part(rows, n - begin, 2);
      LinearArgs args = make(x, w, part);
      args.w.data += begin * k * dtype_bytes(w.ref.dtype);
      args.w.shape[0] = n - begin;
      linear(args, ctx);
      for (std::int64_t row = 0; row < rows; ++row) {
        ASSERT_TRUE(same_bits(&part.view(row, 0), &all.view(row, begin), n - begin));
      }
    }
  }
}

TEST_P(LinearCase, NanAndInfinityStayWhereTheyBelong) {
  Context ctx(with_threads(2));
  const std::int64_t n = 70;
  for (const std::int64_t rows : {3, 70}) {
    for (const std::int64_t k : {1, 31, 65, 66, 67, 128}) {
      for (const float bad : {kNan, kInf, -kInf, -kNan}) {
        auto values = random_floats(rows * k, 1);
        Weights w(n, k, std::get<2>(GetParam()), 2);
        values[1 * k + k - 1] = bad;
        w.set(5 * k + k / 2, bad);
        const PaddedRows x(values, rows, k, 1);
        const PaddedRows y(rows, n, 1);
        linear(make(x, w, y), ctx);
        const auto expected = linear_ref(values, w.values, rows, n, k, std::get<1>(GetParam()));
        for (std::int64_t i = 0; i < rows * n; ++i) {
          const float got = y.view(i / n, i % n);
          ASSERT_EQ(std::isnan(got), std::isnan(expected[i])) << i << " " << bad;
          ASSERT_EQ(std::isinf(got), std::isinf(expected[i])) << i << " " << bad;
        }
      }
    }
  }
}

TEST_P(LinearCase, WorkspaceIsWhatWasAnnounced) {
  const Weights w(300, 200, std::get<2>(GetParam()), 2);
  for (const std::int64_t rows : {1, 16, 300}) {
    const PaddedRows x(random_floats(rows * 200, 1), rows, 200, 1);
    const PaddedRows y(rows, 300, 0);
    Context ctx(with_threads(2));
    const LinearArgs args = make(x, w, y);
    linear(args, ctx);
    EXPECT_LE(ctx.workspace().peak_bytes(), linear_workspace_bytes(args, ctx));
    EXPECT_GE(ctx.workspace().peak_bytes() + 4096, linear_workspace_bytes(args, ctx));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Paths, LinearCase,
    ::testing::Combine(::testing::Values(LinearPath::kSkinny, LinearPath::kGemm),
                       ::testing::Values(Compute::kF32, Compute::kBf16),
                       ::testing::Values(DType::kF32, DType::kBf16)),
    [](const auto& test) {
      return std::string(std::get<0>(test.param) == LinearPath::kSkinny ? "Skinny" : "Gemm") +
             (std::get<1>(test.param) == Compute::kF32 ? "F32" : "Bf16") + "Weights" +
             dtype_name(std::get<2>(test.param));
    });

TEST(Linear, AutoTakesTheSkinnyPathForUpTo16Rows) {
  Context ctx(with_threads(2));
  const Weights w(65, 300, DType::kBf16, 2);
  for (const std::int64_t rows : {1, 16, 17, 40}) {
    const PaddedRows x(random_floats(rows * 300, 1), rows, 300, 0);
    const PaddedRows chosen(rows, 65, 0);
    const PaddedRows named(rows, 65, 0);
    linear({x.view, w.ref, chosen.view}, ctx);
    linear({x.view, w.ref, named.view, Compute::kF32,
            rows <= 16 ? LinearPath::kSkinny : LinearPath::kGemm},
           ctx);
    EXPECT_TRUE(same_bits(chosen.values(), named.values()));
  }
}

TEST(Linear, RefusesWrongArguments) {
  Context ctx(with_threads(1));
  const Weights w(4, 8, DType::kF32, 2);
  const PaddedRows x(2, 8, 0);
  const PaddedRows y(2, 4, 0);
  const LinearArgs good{x.view, w.ref, y.view};
  LinearArgs args = good;
  args.w.shape = {4, 9};
  EXPECT_NE(error_of([&] { linear(args, ctx); }).find("[4, 9]"), std::string::npos);
  args = good;
  args.w.shape = {32};
  error_of([&] { linear(args, ctx); });
  args = good;
  args.w.dtype = DType::kF16;
  EXPECT_NE(error_of([&] { linear(args, ctx); }).find("F16"), std::string::npos);
  args = good;
  args.y.shape[0] = 1;
  error_of([&] { linear(args, ctx); });
  args = good;
  args.x.stride[1] = 2;
  error_of([&] { linear(args, ctx); });
  args = good;
  args.y.stride[0] = 3;
  error_of([&] { linear(args, ctx); });
}

}  // namespace
}  // namespace mamba3
