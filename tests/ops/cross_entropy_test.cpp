#include "ops/cross_entropy/cross_entropy.h"

#include <numeric>

#include "core/arena.h"
#include "gradient_case.h"
#include "ops/cross_entropy/cross_entropy_ref.h"

namespace mamba3 {
namespace {

using testing::doubles;
using testing::expect_slope;
using testing::expect_within;

struct Sizes {
  std::int64_t t, d, v;
};

// Every fifth row is ignored, and its x is poisoned for the op.
struct Case {
  Case(Sizes sizes, DType dtype = DType::kF32, double z_weight = 0)
      : s(sizes),
        values(random_floats(s.t * s.d, 1)),
        w(random_floats(s.v * s.d, 2, 2 / std::sqrt(static_cast<float>(s.d)))),
        x(values, s.t, s.d, 3),
        grad_x(s.t, s.d, 1),
        grad_w(random_floats(s.v * s.d, 3, 0.01f), s.v, s.d, 2),
        losses(static_cast<std::size_t>(s.t)) {
    for (float& value : w) {
      if (dtype == DType::kBf16) value = to_float(to_bf16(value));
      narrow.push_back(to_bf16(value));
    }
    std::mt19937 engine(4);
    for (std::int64_t i = 0; i < s.t; ++i) {
      const bool ignored = i % 5 == 2;
      targets.push_back(ignored ? kIgnoredTarget : static_cast<std::int32_t>(engine() % s.v));
      for (std::int64_t j = 0; ignored && j < s.d; ++j) x.view(i, j) = kNan;
    }
    args.x = x.view;
    args.w.dtype = dtype;
    args.w.shape = {s.v, s.d};
    args.w.data = dtype == DType::kBf16 ? reinterpret_cast<const std::byte*>(narrow.data())
                                        : reinterpret_cast<const std::byte*>(w.data());
    args.targets = targets;
    args.z_weight = z_weight;
    args.grad_scale = 0.125;
    args.sums = &sums;
    args.losses = losses.data();
    args.grad_x = grad_x.view;
    args.grad_w = grad_w.view;
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  template <class T>
  CrossEntropyRef<T> reference() const {
    return cross_entropy_ref<T>({values.begin(), values.end()}, {w.begin(), w.end()}, targets, s.d,
                                static_cast<T>(args.z_weight), static_cast<T>(args.grad_scale));
  }
  void run_and_compare(Context& ctx) {
    auto truth = reference<double>();
    auto plain = reference<float>();
    const auto before = grad_w.values();
    for (std::size_t i = 0; i < before.size(); ++i) {
      truth.grad_w[i] += before[i];
      plain.grad_w[i] += before[i];
    }
    cross_entropy(args, ctx);
    const std::string name =
        std::to_string(s.t) + " x " + std::to_string(s.d) + " x " + std::to_string(s.v);
    const Comparison c =
        compare(std::span<const double>(losses), std::span<const float>(plain.losses),
                std::span<const double>(truth.losses), kFloatRounding);
    EXPECT_TRUE(c.ok) << name << ": losses off by " << c.error << ", bound " << c.bound;
    expect_within(grad_x.values(), plain.grad_x, truth.grad_x, "grad_x " + name);
    expect_within(grad_w.values(), plain.grad_w, truth.grad_w, "grad_w " + name);
    EXPECT_TRUE(grad_x.gap_untouched() && grad_w.gap_untouched());
    const double loss = std::accumulate(truth.losses.begin(), truth.losses.end(), 0.0);
    EXPECT_NEAR(sums.loss, loss, c.bound * static_cast<double>(s.t) * (1 + std::abs(loss)));
    EXPECT_NEAR(sums.squared_z, testing::dot(truth.z, truth.z), 1e-5 * (1 + sums.squared_z));
    EXPECT_EQ(sums.rows, truth.rows);
    EXPECT_EQ(sums.correct, truth.correct);
  }

  Sizes s;
  std::vector<float> values, w;
  std::vector<Bf16> narrow;
  PaddedRows x, grad_x, grad_w;
  std::vector<double> losses;
  std::vector<std::int32_t> targets;
  CrossEntropySums sums;
  CrossEntropyArgs args;
};

TEST(CrossEntropy, AgreesWithTheOracle) {
  Context ctx(with_threads(2));
  for (const double z_weight : {0.0, 0.01}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const std::int64_t v : {1, 2, 7, 64, 131}) {
        for (const std::int64_t t : {0, 1, 2, 3, 17, 70}) {
          Case({t, 13, v}, dtype, z_weight).run_and_compare(ctx);
        }
      }
    }
  }
  Case({600, 33, 50}).run_and_compare(ctx);  // more than one slice
  Case({9, 65, 3001}).run_and_compare(ctx);
}

TEST(CrossEntropy, EveryInstructionSet) {
  for_each_target([] {
    Context ctx(with_threads(2));
    for (const std::int64_t v : {1, 16, 75})
      Case({11, 9, v}, DType::kF32, 0.01).run_and_compare(ctx);
  });
}

TEST(CrossEntropyRef, EqualsFiniteDifferences) {
  constexpr std::int64_t kD = 4;
  const std::vector<std::int32_t> targets = {0, 5, -1, 6, 2};
  auto x = doubles(random_floats(5 * kD, 1)), w = doubles(random_floats(7 * kD, 2));
  constexpr double kZWeight = 0.3, kScale = 1.7;
  const auto loss = [&] {
    const auto ref = cross_entropy_ref(x, w, targets, kD, kZWeight, kScale);
    return kScale * (std::accumulate(ref.losses.begin(), ref.losses.end(), 0.0) +
                     kZWeight * testing::dot(ref.z, ref.z));
  };
  const auto ref = cross_entropy_ref(x, w, targets, kD, kZWeight, kScale);
  expect_slope(x, ref.grad_x, loss, "x");
  expect_slope(w, ref.grad_w, loss, "w");
}

TEST(CrossEntropy, BitsDependOnNoThread) {
  Case two({1100, 40, 203});
  Context ctx(with_threads(2));
  cross_entropy(two.args, ctx);
  for (const int threads : {1, 3}) {
    Case again({1100, 40, 203});
    Context other(with_threads(threads));
    cross_entropy(again.args, other);
    EXPECT_EQ(again.sums.loss, two.sums.loss);
    EXPECT_TRUE(same_bits(again.grad_x.values(), two.grad_x.values()));
    EXPECT_TRUE(same_bits(again.grad_w.values(), two.grad_w.values()));
  }
}

// A token that is all but certain: its gradient is what is left of 1.
TEST(CrossEntropy, AConfidentRowKeepsItsDigits) {
  Context ctx(with_threads(1));
  Case c({1, 1, 2});
  c.targets[0] = 0;
  c.x.view(0, 0) = 1;
  c.w = {20, 0};
  c.args.w.data = reinterpret_cast<const std::byte*>(c.w.data());
  c.args.grad_scale = 1;
  cross_entropy(c.args, ctx);
  const double left = 1 / (1 + std::exp(20.0));
  EXPECT_NEAR(c.grad_x.view(0, 0), -20 * left, 20 * left * 1e-6);
  EXPECT_NEAR(c.losses[0], std::log1p(std::exp(-20.0)), left * 1e-6);
}

TEST(CrossEntropy, HugeLogitsAndNonFiniteOnes) {
  for_each_target([] {
    Context ctx(with_threads(1));
    for (const float size : {80.0f, 3e4f, 1e30f, kNan, kInf}) {
      Case c({3, 5, 37});
      for (std::int64_t i = 0; i < 5; ++i) c.x.view(1, i) *= size;
      c.values = c.x.values();
      c.args.grad_w = {};
      const auto truth = c.reference<double>();
      cross_entropy(c.args, ctx);
      for (std::int64_t row = 0; row < 2; ++row) {
        EXPECT_EQ(std::isnan(c.losses[row]), std::isnan(truth.losses[row])) << size;
        if (!std::isnan(truth.losses[row])) {
          EXPECT_NEAR(c.losses[row], truth.losses[row], 1e-5 * (1 + truth.losses[row]));
        }
        EXPECT_EQ(std::isnan(c.grad_x.view(row, 0)), std::isnan(truth.grad_x[row * 5])) << size;
      }
    }
  });
}

TEST(CrossEntropy, LossAloneAndOneGradientAlone) {
  Context ctx(with_threads(2));
  Case both({70, 13, 57}), loss({70, 13, 57}), only_x({70, 13, 57}), only_w({70, 13, 57});
  cross_entropy(both.args, ctx);
  loss.args.grad_x = {};
  loss.args.grad_w = {};
  loss.args.losses = nullptr;
  cross_entropy(loss.args, ctx);
  EXPECT_EQ(loss.sums.loss, both.sums.loss);
  only_x.args.grad_w = {};
  cross_entropy(only_x.args, ctx);
  EXPECT_TRUE(same_bits(only_x.grad_x.values(), both.grad_x.values()));
  only_w.args.grad_x = {};
  cross_entropy(only_w.args, ctx);
  EXPECT_TRUE(same_bits(only_w.grad_w.values(), both.grad_w.values()));
}

TEST(CrossEntropy, AssignsWhereItShall) {
  Context ctx(with_threads(2));
  for (const std::int64_t t : {0, 70, 1100}) {
    Case added({t, 13, 57}), assigned({t, 13, 57});
    for (std::int64_t i = 0; i < 13 * 57; ++i) {
      added.grad_w.view(i / 13, i % 13) = 0;
      assigned.grad_w.view(i / 13, i % 13) = kNan;
    }
    assigned.args.accumulate_w = false;
    cross_entropy(added.args, ctx);
    cross_entropy(assigned.args, ctx);
    EXPECT_TRUE(assigned.grad_w.values() == added.grad_w.values()) << t;
    EXPECT_TRUE(assigned.grad_w.gap_untouched());
  }
}

TEST(CrossEntropy, LogitsOfAllRowsNeverExistTogether) {
  Case c({3000, 8, 4000});
  Context ctx(with_threads(2));
  cross_entropy(c.args, ctx);
  EXPECT_LE(ctx.workspace().peak_bytes(), cross_entropy_workspace_bytes(c.args, ctx));
  EXPECT_LT(ctx.workspace().peak_bytes(), 3000u * 4000u * 4u / 2u);
}

TEST(CrossEntropy, RefusesWrongArguments) {
  Context ctx(with_threads(1));
  const Case good({3, 8, 5});
  const auto refused = [&](auto&& change) {
    CrossEntropyArgs args = good.args;
    change(args);
    return error_of([&] { cross_entropy(args, ctx); });
  };
  for (const std::int32_t bad : {5, -2}) {
    const std::vector<std::int32_t> targets = {0, 1, bad};
    EXPECT_NE(refused([&](auto& a) {
                a.targets = targets;
              }).find("row 2 has the target " + std::to_string(bad)),
              std::string::npos);
  }
  EXPECT_NE(refused([](auto& a) { a.x.shape[1] = 7; }).find("[3, 7]"), std::string::npos);
  refused([](auto& a) { a.grad_x.shape[0] = 2; });
  refused([](auto& a) { a.grad_w.shape[0] = 4; });
  refused([](auto& a) { a.sums = nullptr; });
  refused([](auto& a) { a.z_weight = -1; });
}

}  // namespace
}  // namespace mamba3
