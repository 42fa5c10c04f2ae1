// cross_entropy on a GPU against the oracle. Skipped where there is no GPU.
#include <numeric>

#include "core/arena.h"
#include "gpu_matrix.h"
#include "gradient_case.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/cross_entropy/cross_entropy_ref.h"

namespace mamba3 {
namespace {

using testing::all;
using testing::GpuArray;
using testing::GpuMatrix;
using testing::GpuWeights;
using testing::on_gpu;
using testing::through_bf16;

struct Sizes {
  std::int64_t t, d, v;
  std::string name() const {
    return std::to_string(t) + " x " + std::to_string(d) + " x " + std::to_string(v);
  }
};

// Types of the weights, of the products, and of x and grad_x.
struct Types {
  DType weights = DType::kF32;
  Compute compute = Compute::kF32;
  DType activations = DType::kF32;
};

std::string name_of(const ::testing::TestParamInfo<Types>& info) {
  const Types& t = info.param;
  return std::string(dtype_name(t.weights)) + (t.compute == Compute::kF32 ? "InF32" : "InBf16") +
         "Of" + dtype_name(t.activations);
}

// Every fifth row is ignored, and its x is poisoned for the op.
std::vector<std::int32_t> some_targets(const Sizes& s) {
  std::mt19937 engine(4);
  std::vector<std::int32_t> out;
  for (std::int64_t i = 0; i < s.t; ++i) {
    out.push_back(i % 5 == 2 ? kIgnoredTarget : static_cast<std::int32_t>(engine() % s.v));
  }
  return out;
}

std::vector<float> poisoned(std::vector<float> x, const std::vector<std::int32_t>& targets,
                            std::int64_t d) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (targets[i / d] == kIgnoredTarget) x[i] = kNan;
  }
  return x;
}

struct Results {
  std::vector<double> losses;
  std::vector<float> grad_x, grad_w;
  CrossEntropySums sums;
};

struct Case {
  Case(Sizes sizes, const Types& types_in, Context& ctx, double z_weight = 0)
      : Case(sizes, types_in, ctx, z_weight, random_floats(sizes.t * sizes.d, 1),
             random_floats(sizes.v * sizes.d, 2, 2 / std::sqrt(static_cast<float>(sizes.d))),
             some_targets(sizes)) {}
  Case(Sizes sizes, const Types& types_in, Context& ctx, double z_weight, std::vector<float> x_in,
       std::vector<float> w_in, std::vector<std::int32_t> targets_in)
      : s(sizes),
        types(types_in),
        values(std::move(x_in)),
        w(std::move(w_in)),
        targets(std::move(targets_in)),
        x(poisoned(values, targets, s.d), s.t, s.d, 3),
        grad_x(s.t, s.d, 1),
        grad_w(random_floats(s.v * s.d, 3, 0.01f), s.v, s.d, 2),
        before(grad_w.values()),
        x_there(ctx, x, types.activations),
        w_there(ctx, w, s.v, s.d, types.weights),
        grad_x_there(ctx, grad_x, types.activations),
        grad_w_there(ctx, grad_w),
        targets_there(ctx, all(targets)),
        losses_there(ctx, all(std::vector<double>(targets.size(), kNan))),
        sums_there(ctx, all(std::vector<CrossEntropySums>(1))) {
    args.x = x_there.view;
    args.w = w_there.ref;
    args.targets = targets_there.span();
    args.z_weight = z_weight;
    args.grad_scale = 0.125;
    args.sums = sums_there.data();
    args.losses = losses_there.data();
    args.grad_x = grad_x_there.view;
    args.grad_w = {static_cast<float*>(grad_w_there.view.data), grad_w.view.shape,
                   grad_w.view.stride};
    args.compute = types.compute;
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  Results run(Context& ctx) {
    cross_entropy(args, ctx);
    grad_x_there.fetch();
    grad_w_there.fetch();
    Results out;
    losses_there.copy_to(out.losses);
    std::vector<CrossEntropySums> sums;
    sums_there.copy_to(sums);
    out.sums = sums[0];
    out.grad_x = grad_x.values();
    out.grad_w = grad_w.values();
    EXPECT_TRUE(grad_x.gap_untouched() && grad_w.gap_untouched()) << s.name();
    return out;
  }
  template <class T>
  CrossEntropyRef<T> reference() const {
    const bool bf16 = types.compute == Compute::kBf16;
    const auto cast = [](const std::vector<float>& from, bool rounded) {
      const auto taken = rounded ? through_bf16(from) : from;
      return std::vector<T>(taken.begin(), taken.end());
    };
    auto out = cross_entropy_ref<T>(cast(values, bf16),
                                    cast(w, bf16 || types.weights == DType::kBf16), targets, s.d,
                                    static_cast<T>(args.z_weight), static_cast<T>(args.grad_scale));
    for (std::size_t i = 0; i < before.size(); ++i) out.grad_w[i] += before[i];
    return out;
  }
  Results run_and_compare(Context& ctx) {
    const auto truth = reference<double>();
    auto plain = reference<float>();
    if (types.activations == DType::kBf16) plain.grad_x = through_bf16(plain.grad_x);
    const Results got = run(ctx);
    // The gradient of the logits is rounded before it is multiplied.
    const double rounding = types.compute == Compute::kBf16 ? kBf16Rounding : kFloatRounding;
    const auto expect = [&](const auto& got_values, const auto& plain_values,
                            const auto& true_values, double allowed, const char* what) {
      const Comparison c = compare(all(got_values), all(plain_values), all(true_values), allowed);
      EXPECT_TRUE(c.ok) << what << " of " << s.name() << ": error " << c.error << ", plain "
                        << c.naive_error << ", bound " << c.bound;
      return c.bound;
    };
    const double bound = expect(got.losses, plain.losses, truth.losses, kFloatRounding, "losses");
    expect(got.grad_x, plain.grad_x, truth.grad_x, rounding, "grad_x");
    expect(got.grad_w, plain.grad_w, truth.grad_w, rounding, "grad_w");
    const double loss = std::accumulate(truth.losses.begin(), truth.losses.end(), 0.0);
    EXPECT_NEAR(got.sums.loss, loss, bound * static_cast<double>(s.t) * (1 + std::abs(loss)));
    EXPECT_NEAR(got.sums.squared_z, testing::dot(truth.z, truth.z),
                1e-5 * (1 + got.sums.squared_z));
    EXPECT_EQ(got.sums.rows, truth.rows);
    EXPECT_EQ(got.sums.correct, truth.correct);
    return got;
  }

  Sizes s;
  Types types;
  std::vector<float> values, w;
  std::vector<std::int32_t> targets;
  PaddedRows x, grad_x, grad_w;
  std::vector<float> before;
  GpuMatrix x_there;
  GpuWeights w_there;
  GpuMatrix grad_x_there, grad_w_there;
  GpuArray<std::int32_t> targets_there;
  GpuArray<double> losses_there;
  GpuArray<CrossEntropySums> sums_there;
  CrossEntropyArgs args;
};

void expect_same(const Results& a, const Results& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.sums.loss, b.sums.loss);
  EXPECT_EQ(a.sums.squared_z, b.sums.squared_z);
  EXPECT_TRUE(same_bits(a.grad_x, b.grad_x));
  EXPECT_TRUE(same_bits(a.grad_w, b.grad_w));
}

class CudaCrossEntropy : public ::testing::TestWithParam<Types> {};

TEST_P(CudaCrossEntropy, AgreesWithTheOracle) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const double z_weight : {0.0, 0.01}) {
    for (const std::int64_t v : {1, 2, 7, 64, 131}) {
      for (const std::int64_t t : {0, 1, 2, 3, 17, 70}) {
        Case({t, 13, v}, GetParam(), ctx, z_weight).run_and_compare(ctx);
      }
    }
    // Around what a warp and blocks hold, and beyond.
    for (const std::int64_t v : {127, 129, 1023, 1024, 1025, 8192, 8193, 16384, 16385, 40001}) {
      Case({12, 8, v}, GetParam(), ctx, z_weight).run_and_compare(ctx);
    }
  }
  Case({600, 33, 50}, GetParam(), ctx).run_and_compare(ctx);
}

TEST_P(CudaCrossEntropy, EqualCallsGiveEqualBits) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  Case one({1100, 40, 3001}, GetParam(), ctx);
  const Results first = one.run(ctx);
  for (int i = 0; i < 3; ++i) {
    Context other(on_gpu());
    Case again({1100, 40, 3001}, GetParam(), other);
    expect_same(again.run(other), first);
  }
}

TEST_P(CudaCrossEntropy, LossAloneAndOneGradientAlone) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  Case both({70, 16, 57}, GetParam(), ctx), loss({70, 16, 57}, GetParam(), ctx),
      only_x({70, 16, 57}, GetParam(), ctx), only_w({70, 16, 57}, GetParam(), ctx);
  const Results want = both.run(ctx);
  loss.args.grad_x = {};
  loss.args.grad_w = {};
  loss.args.losses = nullptr;
  const Results of_loss = loss.run(ctx);
  EXPECT_EQ(of_loss.sums.loss, want.sums.loss);
  EXPECT_EQ(of_loss.sums.correct, want.sums.correct);
  EXPECT_TRUE(same_bits(of_loss.grad_w, loss.before));
  only_x.args.grad_w = {};
  EXPECT_TRUE(same_bits(only_x.run(ctx).grad_x, want.grad_x));
  only_w.args.grad_x = {};
  EXPECT_TRUE(same_bits(only_w.run(ctx).grad_w, want.grad_w));
}

TEST_P(CudaCrossEntropy, AssignsWhereItShall) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t t : {0, 70}) {
    Case added({t, 16, 57}, GetParam(), ctx), assigned({t, 16, 57}, GetParam(), ctx);
    for (Case* c : {&added, &assigned}) {
      ctx.gpu()->zero(c->args.grad_w.data, c->grad_w.storage.size() * sizeof(float));
    }
    const std::vector<float> poison(assigned.grad_w.storage.size(), kNan);
    ctx.gpu()->copy_in(assigned.args.grad_w.data, poison.data(), poison.size() * sizeof(float));
    assigned.args.accumulate_w = false;
    cross_entropy(added.args, ctx);
    cross_entropy(assigned.args, ctx);
    added.grad_w_there.fetch();
    assigned.grad_w_there.fetch();
    EXPECT_TRUE(assigned.grad_w.values() == added.grad_w.values()) << t;
  }
}

TEST_P(CudaCrossEntropy, WorkspaceIsWhatWasAnnounced) {
  SKIP_WITHOUT_GPU();
  for (const Sizes sizes : {Sizes{3, 8, 5}, Sizes{300, 41, 1000}}) {
    Context ctx(on_gpu());
    Case c(sizes, GetParam(), ctx);
    c.run(ctx);
    EXPECT_LE(ctx.workspace().peak_bytes(), cross_entropy_workspace_bytes(c.args, ctx));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaCrossEntropy,
                         ::testing::Values(Types{DType::kF32, Compute::kF32, DType::kF32},
                                           Types{DType::kBf16, Compute::kF32, DType::kF32},
                                           Types{DType::kF32, Compute::kBf16, DType::kF32},
                                           Types{DType::kBf16, Compute::kBf16, DType::kF32},
                                           Types{DType::kBf16, Compute::kBf16, DType::kBf16}),
                         name_of);

// Rows of this length fill a slice with 1024 of them: all of them at once, and in two calls.
TEST(CudaCrossEntropyOp, SlicesEqualSeparateCalls) {
  SKIP_WITHOUT_GPU();
  constexpr std::int64_t kRows = 1030, kCut = 500, kLong = 131072;
  for (const Types types : {Types{}, Types{DType::kBf16, Compute::kBf16, DType::kF32}}) {
    Context ctx(on_gpu());
    Case whole({kRows, 2, kLong}, types, ctx, 0.01), parts({kRows, 2, kLong}, types, ctx, 0.01);
    const Results got = whole.run(ctx);
    EXPECT_LE(ctx.workspace().peak_bytes(), cross_entropy_workspace_bytes(whole.args, ctx));
    EXPECT_LT(ctx.workspace().peak_bytes(), std::size_t{kRows} * kLong * sizeof(float));
    const CrossEntropyArgs all_rows = parts.args;
    parts.args.x = all_rows.x.slice(0, kCut);
    parts.args.grad_x = all_rows.grad_x.slice(0, kCut);
    parts.args.targets = all_rows.targets.first(kCut);
    const CrossEntropySums first = parts.run(ctx).sums;
    parts.args.x = all_rows.x.slice(kCut, kRows);
    parts.args.grad_x = all_rows.grad_x.slice(kCut, kRows);
    parts.args.targets = all_rows.targets.subspan(kCut);
    parts.args.losses += kCut;
    const Results want = parts.run(ctx);
    const auto error = [](const auto& a, const auto& b) {
      return largest_error(all(a), all(b), ErrorMetric::kRelative);
    };
    EXPECT_LE(error(got.losses, want.losses), testing::kClose);
    EXPECT_LE(error(got.grad_x, want.grad_x), testing::kClose);
    EXPECT_LE(error(got.grad_w, want.grad_w), testing::kClose);
    EXPECT_NEAR(got.sums.loss, first.loss + want.sums.loss, testing::kClose * got.sums.loss);
    EXPECT_EQ(got.sums.rows, first.rows + want.sums.rows);
    EXPECT_EQ(got.sums.correct, first.correct + want.sums.correct);
  }
}

// A token that is all but certain: its gradient is what is left of 1.
TEST(CudaCrossEntropyOp, AConfidentRowKeepsItsDigits) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  Case c({1, 1, 2}, {}, ctx, 0, {1}, {20, 0}, {0});
  c.args.grad_scale = 1;
  const Results got = c.run(ctx);
  const double left = 1 / (1 + std::exp(20.0));
  EXPECT_NEAR(got.grad_x[0], -20 * left, 20 * left * 1e-6);
  EXPECT_NEAR(got.losses[0], std::log1p(std::exp(-20.0)), left * 1e-6);
}

TEST(CudaCrossEntropyOp, ATieIsCorrect) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t v : {3, 200, 2000, 20000}) {
    Case c({10, 4, v}, {}, ctx, 0, std::vector<float>(40), random_floats(4 * v, 2),
           some_targets({10, 4, v}));
    const Results got = c.run(ctx);
    EXPECT_EQ(got.sums.correct, 8);
    EXPECT_EQ(got.sums.rows, 8);
    EXPECT_NEAR(got.losses[0], std::log(static_cast<double>(v)), 1e-6);
  }
}

TEST(CudaCrossEntropyOp, HugeLogitsAndNonFiniteOnes) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t v : {37, 300, 1100, 9000, 17000}) {
    for (const float size : {80.0f, 3e4f, 1e30f, kNan, kInf}) {
      auto x = random_floats(15, 1);
      for (std::int64_t i = 5; i < 10; ++i) x[i] *= size;
      Case c({3, 5, v}, {}, ctx, 0, x, random_floats(5 * v, 2), some_targets({3, 5, v}));
      c.args.grad_w = {};
      const auto truth = c.reference<double>();
      const Results got = c.run(ctx);
      for (std::int64_t row = 0; row < 2; ++row) {
        EXPECT_EQ(std::isnan(got.losses[row]), std::isnan(truth.losses[row])) << size;
        if (!std::isnan(truth.losses[row])) {
          EXPECT_NEAR(got.losses[row], truth.losses[row], 1e-5 * (1 + truth.losses[row]));
        }
        EXPECT_EQ(std::isnan(got.grad_x[row * 5]), std::isnan(truth.grad_x[row * 5])) << size;
      }
    }
  }
}

TEST(CudaCrossEntropyOp, ATargetOutOfRangeSpoilsItsRow) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int32_t bad : {-2, 37, 1 << 30}) {
    Case c({3, 4, 37}, {}, ctx, 0, random_floats(12, 1), random_floats(4 * 37, 2), {5, bad, 7});
    const Results got = c.run(ctx);
    EXPECT_TRUE(std::isfinite(got.losses[0]) && std::isfinite(got.losses[2]));
    EXPECT_TRUE(std::isnan(got.losses[1]) && std::isnan(got.sums.loss));
    EXPECT_TRUE(std::isfinite(got.grad_x[0]) && std::isnan(got.grad_x[4]));
  }
}

TEST(CudaCrossEntropyOp, RefusesBf16InProductsOfF32) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  Case c({3, 8, 5}, {DType::kBf16, Compute::kBf16, DType::kBf16}, ctx);
  c.args.compute = Compute::kF32;
  EXPECT_NE(error_of([&] { cross_entropy(c.args, ctx); }).find("BF16"), std::string::npos);
}

}  // namespace
}  // namespace mamba3
