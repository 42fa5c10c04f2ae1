#include "ops/rms_norm_backward/rms_norm_backward.h"

#include "core/arena.h"
#include "gradient_case.h"
#include "ops/rms_norm/rms_norm_ref.h"
#include "ops/rms_norm_backward/rms_norm_backward_ref.h"

namespace mamba3 {
namespace {

using testing::dot;
using testing::doubles;
using testing::expect_slope;
using testing::expect_within;

struct Case {
  Case(std::int64_t rows_in, std::int64_t d_in)
      : rows(rows_in),
        d(d_in),
        residual(random_floats(rows * d, 1, 3), rows, d, 1),
        weight(random_floats(d, 2)),
        grad_y(random_floats(rows * d, 3), rows, d, 2),
        grad_residual(random_floats(rows * d, 4), rows, d, 3),
        grad_weight(random_floats(d, 5)) {
    args.residual = residual.view;
    args.weight = weight.data();
    args.grad_y = grad_y.view;
    args.grad_residual = grad_residual.view;
    args.grad_weight = grad_weight.data();
  }
  template <class T>
  RmsNormRefGradients<T> reference() const {
    const auto cast = [](const std::vector<float>& values) {
      return std::vector<T>(values.begin(), values.end());
    };
    auto out = rms_norm_backward_ref<T>(cast(residual.values()), cast(weight),
                                        cast(grad_y.values()), static_cast<T>(args.eps));
    const auto before = grad_residual.values();
    for (std::size_t i = 0; i < before.size(); ++i) out.residual[i] += before[i];
    for (std::size_t i = 0; i < grad_weight.size(); ++i) out.weight[i] += grad_weight[i];
    return out;
  }
  void run_and_compare(Context& ctx) {
    const auto truth = reference<double>();
    const auto plain = reference<float>();
    rms_norm_backward(args, ctx);
    const std::string name = std::to_string(rows) + " x " + std::to_string(d);
    expect_within(grad_residual.values(), plain.residual, truth.residual, "residual " + name);
    expect_within(grad_weight, plain.weight, truth.weight, "weight " + name);
    EXPECT_TRUE(grad_residual.gap_untouched()) << name;
  }
  std::int64_t rows, d;
  PaddedRows residual;
  std::vector<float> weight;
  PaddedRows grad_y, grad_residual;
  std::vector<float> grad_weight;
  RmsNormBackwardArgs args;
};

TEST(RmsNormBackward, AgreesWithTheOracle) {
  for_each_target([] {
    Context ctx(with_threads(2));
    for (const std::int64_t d : {1, 3, 16, 63, 65, 300, 768}) {
      for (const std::int64_t rows : {0, 1, 2, 64, 131}) Case(rows, d).run_and_compare(ctx);
    }
  });
}

TEST(RmsNormBackwardRef, EqualsFiniteDifferences) {
  constexpr std::int64_t kRows = 4, kD = 7;
  auto residual = doubles(random_floats(kRows * kD, 1)), weight = doubles(random_floats(kD, 2));
  const auto grad_y = doubles(random_floats(kRows * kD, 3));
  for (const double eps : {1e-5, 0.3}) {
    const auto loss = [&] { return dot(rms_norm_ref(residual, weight, kRows, kD, eps), grad_y); };
    const auto grads = rms_norm_backward_ref(residual, weight, grad_y, eps);
    expect_slope(residual, grads.residual, loss, "residual");
    expect_slope(weight, grads.weight, loss, "weight");
  }
}

TEST(RmsNormBackward, BitsDependOnNoThread) {
  Case two(1000, 129);
  Context ctx(with_threads(2));
  rms_norm_backward(two.args, ctx);
  for (const int threads : {1, 3}) {
    Case again(1000, 129);
    Context other(with_threads(threads));
    rms_norm_backward(again.args, other);
    EXPECT_TRUE(same_bits(again.grad_residual.values(), two.grad_residual.values()));
    EXPECT_TRUE(same_bits(again.grad_weight, two.grad_weight));
  }
  Case without(1000, 129);
  without.args.grad_weight = nullptr;
  rms_norm_backward(without.args, ctx);
  EXPECT_TRUE(same_bits(without.grad_residual.values(), two.grad_residual.values()));
  EXPECT_LE(ctx.workspace().peak_bytes(), rms_norm_backward_workspace_bytes(two.args, ctx));
}

// Squares of such rows over- or underflow in fp32, and so does 1 / rms^3.
TEST(RmsNormBackward, HugeAndTinyRows) {
  Context ctx(with_threads(1));
  for (const float size : {1e15f, 1e-15f, 1e-25f}) {
    Case c(3, 64);
    for (std::int64_t i = 0; i < 64; ++i) {
      c.residual.view(1, i) *= size;
      c.grad_y.view(1, i) *= std::min(size, 1.0f);
      c.grad_residual.view(1, i) = 0;
    }
    c.args.eps = 0;
    const auto truth = c.reference<double>();
    rms_norm_backward(c.args, ctx);
    double scale = 0;
    for (std::int64_t i = 64; i < 128; ++i) scale = std::max(scale, std::abs(truth.residual[i]));
    for (std::int64_t i = 0; i < 64; ++i) {
      EXPECT_NEAR(c.grad_residual.view(1, i), truth.residual[64 + i], scale * 1e-6) << size;
    }
  }
}

TEST(RmsNormBackward, KeepsNanInItsRow) {
  Context ctx(with_threads(1));
  for (const float bad : {kNan, kInf}) {
    Case c(3, 65);
    c.grad_y.view(1, 64) = bad;
    c.args.grad_weight = nullptr;
    rms_norm_backward(c.args, ctx);
    for (std::int64_t i = 0; i < 65; ++i) {
      EXPECT_FALSE(std::isfinite(c.grad_residual.view(1, i)));
      EXPECT_TRUE(std::isfinite(c.grad_residual.view(0, i)));
      EXPECT_TRUE(std::isfinite(c.grad_residual.view(2, i)));
    }
  }
}

TEST(RmsNormBackward, RefusesWrongArguments) {
  Context ctx(with_threads(1));
  const Case good(2, 8);
  const auto refused = [&](auto&& change) {
    RmsNormBackwardArgs args = good.args;
    change(args);
    return error_of([&] { rms_norm_backward(args, ctx); });
  };
  EXPECT_NE(refused([](auto& a) { a.grad_y.shape[1] = 7; }).find("[2, 7]"), std::string::npos);
  EXPECT_NE(refused([](auto& a) { a.grad_residual.shape[0] = 3; }).find("[3, 8]"),
            std::string::npos);
  refused([](auto& a) { a.weight = nullptr; });
  refused([](auto& a) { a.eps = kNan; });
  refused([](auto& a) { a.grad_y.dtype = DType::kBf16; });
  refused([](auto& a) { a.grad_residual.stride[1] = 2; });
  std::vector<Bf16> rounded(16);
  refused([&](auto& a) { a.rounded = TensorView<Bf16, 2>(rounded.data(), {2, 8}); });
}

}  // namespace
}  // namespace mamba3
