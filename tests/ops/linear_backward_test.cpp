#include "ops/linear_backward/linear_backward.h"

#include <tuple>

#include "core/arena.h"
#include "gradient_case.h"
#include "ops/linear/linear_ref.h"
#include "ops/linear_backward/linear_backward_ref.h"

namespace mamba3 {
namespace {

using testing::dot;
using testing::doubles;
using testing::expect_slope;
using testing::expect_within;

std::vector<float> rounded(std::vector<float> values) {
  for (float& value : values) value = to_float(to_bf16(value));
  return values;
}

struct Sizes {
  std::int64_t rows, n, k;
  std::string name() const {
    return std::to_string(rows) + " x " + std::to_string(n) + " x " + std::to_string(k);
  }
};

struct Case {
  Case(Sizes sizes, DType dtype, Compute compute)
      : s(sizes),
        x(random_floats(s.rows * s.k, 1), s.rows, s.k, 3),
        w(random_floats(s.n * s.k, 2)),
        grad_y(random_floats(s.rows * s.n, 3), s.rows, s.n, 1),
        grad_x(s.rows, s.k, 2),
        grad_w(random_floats(s.n * s.k, 4), s.n, s.k, 5) {
    if (dtype == DType::kBf16) w = rounded(w);
    for (const float value : w) narrow.push_back(to_bf16(value));
    args.x = x.view;
    args.w.dtype = dtype;
    args.w.shape = {s.n, s.k};
    args.w.data = dtype == DType::kBf16 ? reinterpret_cast<const std::byte*>(narrow.data())
                                        : reinterpret_cast<const std::byte*>(w.data());
    args.grad_y = grad_y.view;
    args.grad_x = grad_x.view;
    args.grad_w = grad_w.view;
    args.compute = compute;
  }
  // What x, w and grad_y count as.
  std::vector<float> taken(const std::vector<float>& values) const {
    return args.compute == Compute::kBf16 ? rounded(values) : values;
  }
  template <class T>
  LinearRefGradients<T> reference() const {
    const auto cast = [this](const std::vector<float>& values) {
      const auto from = taken(values);
      return std::vector<T>(from.begin(), from.end());
    };
    return linear_backward_ref<T>(cast(x.values()), cast(w), cast(grad_y.values()), s.rows, s.n,
                                  s.k);
  }
  void run_and_compare(Context& ctx) {
    auto truth = reference<double>();
    auto plain = reference<float>();
    const auto before = grad_w.values();
    for (std::size_t i = 0; i < before.size(); ++i) {
      truth.w[i] += before[i];
      plain.w[i] += before[i];
    }
    linear_backward(args, ctx);
    expect_within(grad_x.values(), plain.x, truth.x, "grad_x of " + s.name());
    expect_within(grad_w.values(), plain.w, truth.w, "grad_w of " + s.name());
    EXPECT_TRUE(grad_x.gap_untouched() && grad_w.gap_untouched()) << s.name();
  }

  Sizes s;
  PaddedRows x;
  std::vector<float> w;
  std::vector<Bf16> narrow;
  PaddedRows grad_y, grad_x, grad_w;
  LinearBackwardArgs args;
};

class LinearBackward : public ::testing::TestWithParam<std::tuple<DType, Compute>> {
 protected:
  Case make(Sizes sizes) const { return {sizes, std::get<0>(GetParam()), std::get<1>(GetParam())}; }
};

TEST_P(LinearBackward, AgreesWithTheOracle) {
  Context ctx(with_threads(2));
  for (const std::int64_t k : {1, 7, 16, 65}) {
    for (const std::int64_t n : {1, 5, 16, 67}) {
      for (const std::int64_t rows : {1, 2, 17, 64}) make({rows, n, k}).run_and_compare(ctx);
    }
  }
  make({0, 5, 7}).run_and_compare(ctx);
  make({5, 0, 7}).run_and_compare(ctx);
  make({5, 7, 0}).run_and_compare(ctx);
  // Beyond a block of the depth, of rows and of columns.
  make({1100, 21, 33}).run_and_compare(ctx);
  make({13, 1049, 19}).run_and_compare(ctx);
  make({201, 30, 290}).run_and_compare(ctx);
}

TEST_P(LinearBackward, ColumnsOfZerosChangeNoGradient) {
  Context ctx(with_threads(2));
  for (const Sizes sizes : {Sizes{33, 13, 40}, Sizes{1, 1, 8}, Sizes{0, 5, 7}, Sizes{5, 0, 7}}) {
    Case c = make(sizes);
    for (std::int64_t row = 0; row < sizes.rows; ++row) {
      c.grad_y.view.data[row * c.grad_y.view.stride[0] + sizes.n] = 0;  // its gap
    }
    ++c.args.grad_y.shape[1];
    c.run_and_compare(ctx);
  }
}

TEST_P(LinearBackward, EveryInstructionSet) {
  for_each_target([this] {
    Context ctx(with_threads(2));
    for (const std::int64_t k : {5, 16, 37}) make({19, 21, k}).run_and_compare(ctx);
    make({300, 9, 18}).run_and_compare(ctx);
  });
}

TEST_P(LinearBackward, BitsDependOnNoThread) {
  Case two = make({1500, 203, 277});
  Context ctx(with_threads(2));
  linear_backward(two.args, ctx);
  for (const int threads : {1, 3}) {
    Case again = make({1500, 203, 277});
    Context other(with_threads(threads));
    linear_backward(again.args, other);
    EXPECT_TRUE(same_bits(again.grad_x.values(), two.grad_x.values()));
    EXPECT_TRUE(same_bits(again.grad_w.values(), two.grad_w.values()));
  }
  // Rows of grad_x do not depend on their neighbours.
  Case some = make({1500, 203, 277});
  some.args.x = some.x.view.slice(700, 777);
  some.args.grad_y = some.grad_y.view.slice(700, 777);
  some.args.grad_x = some.grad_x.view.slice(700, 777);
  linear_backward(some.args, ctx);
  for (std::int64_t row = 700; row < 777; ++row) {
    EXPECT_TRUE(same_bits(&some.grad_x.view(row, 0), &two.grad_x.view(row, 0), 277));
  }
}

TEST_P(LinearBackward, WorkspaceIsWhatWasAnnounced) {
  for (const Sizes sizes : {Sizes{3, 70, 40}, Sizes{1300, 40, 70}}) {
    Case c = make(sizes);
    Context ctx(with_threads(2));
    linear_backward(c.args, ctx);
    EXPECT_LE(ctx.workspace().peak_bytes(), linear_backward_workspace_bytes(c.args, ctx));
    EXPECT_GE(ctx.workspace().peak_bytes() + 4096, linear_backward_workspace_bytes(c.args, ctx));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, LinearBackward,
                         ::testing::Combine(::testing::Values(DType::kF32, DType::kBf16),
                                            ::testing::Values(Compute::kF32, Compute::kBf16)),
                         [](const auto& each) {
                           return std::string(dtype_name(std::get<0>(each.param))) +
                                  (std::get<1>(each.param) == Compute::kF32 ? "InF32" : "InBf16");
                         });

TEST(LinearBackwardRef, EqualsFiniteDifferences) {
  constexpr std::int64_t kRows = 5, kN = 7, kK = 3;
  auto x = doubles(random_floats(kRows * kK, 1)), w = doubles(random_floats(kN * kK, 2));
  const auto grad_y = doubles(random_floats(kRows * kN, 3));
  const auto loss = [&] {
    double sum = 0;
    for (std::int64_t i = 0; i < kRows * kN; ++i) {
      for (std::int64_t j = 0; j < kK; ++j) {
        sum += grad_y[i] * x[i / kN * kK + j] * w[i % kN * kK + j];
      }
    }
    return sum;
  };
  const auto grads = linear_backward_ref(x, w, grad_y, kRows, kN, kK);
  expect_slope(x, grads.x, loss, "x");
  expect_slope(w, grads.w, loss, "w");
}

TEST(LinearBackwardOp, OneGradientAlone) {
  Context ctx(with_threads(2));
  Case both({40, 21, 33}, DType::kF32, Compute::kF32);
  linear_backward(both.args, ctx);
  Case only_x({40, 21, 33}, DType::kF32, Compute::kF32);
  only_x.args.grad_w = {};
  only_x.args.x = {};
  linear_backward(only_x.args, ctx);
  EXPECT_TRUE(same_bits(only_x.grad_x.values(), both.grad_x.values()));
  Case only_w({40, 21, 33}, DType::kF32, Compute::kF32);
  only_w.args.grad_x = {};
  only_w.args.w.data = nullptr;
  linear_backward(only_w.args, ctx);
  EXPECT_TRUE(same_bits(only_w.grad_w.values(), both.grad_w.values()));
}

TEST(LinearBackwardOp, AssignsWhereItShall) {
  Context ctx(with_threads(2));
  for (const Sizes sizes : {Sizes{40, 21, 33}, Sizes{0, 21, 33}, Sizes{1100, 9, 7}}) {
    Case added(sizes, DType::kF32, Compute::kF32), assigned(sizes, DType::kF32, Compute::kF32);
    for (std::int64_t i = 0; i < sizes.n * sizes.k; ++i) {
      added.grad_w.view(i / sizes.k, i % sizes.k) = 0;
      assigned.grad_w.view(i / sizes.k, i % sizes.k) = kNan;
    }
    assigned.args.accumulate_w = false;
    linear_backward(added.args, ctx);
    linear_backward(assigned.args, ctx);
    EXPECT_TRUE(assigned.grad_w.values() == added.grad_w.values()) << sizes.name();
    EXPECT_TRUE(assigned.grad_w.gap_untouched());
  }
}

TEST(LinearBackwardOp, NanAndInfinityStayWhereTheyBelong) {
  Context ctx(with_threads(2));
  for (const float bad : {kNan, kInf}) {
    Case c({35, 21, 19}, DType::kF32, Compute::kF32);
    c.x.view(3, 18) = bad;
    c.grad_y.view(7, 20) = bad;
    c.run_and_compare(ctx);
  }
}

TEST(LinearBackwardOp, RefusesWrongArguments) {
  Context ctx(with_threads(1));
  const Case good({2, 4, 8}, DType::kF32, Compute::kF32);
  const auto refused = [&](auto&& change) {
    LinearBackwardArgs args = good.args;
    change(args);
    return error_of([&] { linear_backward(args, ctx); });
  };
  EXPECT_NE(refused([](auto& a) { a.w.shape = {4, 9}; }).find("[2, 8]"), std::string::npos);
  refused([](auto& a) { a.w.shape = {32}; });
  EXPECT_NE(refused([](auto& a) { a.w.dtype = DType::kF16; }).find("F16"), std::string::npos);
  refused([](auto& a) { a.grad_y.shape[1] = 3; });
  refused([](auto& a) { a.grad_x.stride[0] = 7; });
  refused([](auto& a) { a.grad_w.stride[1] = 2; });
  refused([](auto& a) { a.x.shape[0] = 1; });
  EXPECT_NE(refused([](auto& a) { a.grad_y.dtype = DType::kBf16; }).find("BF16"),
            std::string::npos);
}

}  // namespace
}  // namespace mamba3
