// linear_backward on a GPU against the oracle. Skipped where there is no GPU.
#include <algorithm>
#include <tuple>

#include "core/arena.h"
#include "gpu_matrix.h"
#include "gradient_case.h"
#include "ops/linear_backward/linear_backward.h"
#include "ops/linear_backward/linear_backward_ref.h"

namespace mamba3 {
namespace {

using testing::expect_within;
using testing::GpuMatrix;
using testing::GpuWeights;
using testing::on_gpu;
using testing::through_bf16;

struct Sizes {
  std::int64_t rows, n, k;
  std::int64_t gap = 1;    // behind each row
  std::int64_t zeros = 0;  // columns of grad_y behind n
  std::string name() const {
    return std::to_string(rows) + " x " + std::to_string(n) + " x " + std::to_string(k) + " + " +
           std::to_string(gap) + ", " + std::to_string(zeros) + " zeros";
  }
};

// Types of the weights, of the products, and of x, grad_y and grad_x.
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

// The first columns behind those of `rows`.
PaddedRows& with_zeros(PaddedRows& rows, std::int64_t zeros) {
  for (std::int64_t row = 0; row < rows.view.shape[0]; ++row) {
    std::fill_n(rows.view.data + row * rows.view.stride[0] + rows.view.shape[1], zeros, 0.0f);
  }
  return rows;
}

// Leaves NaNs in the workspace.
void poison(std::size_t bytes, Context& ctx) {
  ArenaScope scope(ctx.workspace());
  const std::vector<std::byte> ones(bytes, std::byte{0xff});
  auto* memory = scope.allocate<std::byte>(std::ssize(ones));
  if (bytes > 0) ctx.gpu()->copy_in(memory, ones.data(), bytes);
}

struct Case {
  Case(Sizes sizes, const Types& types_in, Context& ctx)
      : Case(sizes, types_in, ctx, random_floats(sizes.n * sizes.k, 4)) {}
  Case(Sizes sizes, const Types& types_in, Context& ctx, float fill)
      : Case(sizes, types_in, ctx,
             std::vector<float>(static_cast<std::size_t>(sizes.n * sizes.k), fill)) {}
  Case(Sizes sizes, const Types& types_in, Context& ctx, const std::vector<float>& grad_w_in)
      : s(sizes),
        types(types_in),
        x(random_floats(s.rows * s.k, 1), s.rows, s.k, s.gap),
        w(random_floats(s.n * s.k, 2)),
        grad_y(random_floats(s.rows * s.n, 3), s.rows, s.n, s.gap + s.zeros),
        grad_x(s.rows, s.k, s.gap),
        grad_w(grad_w_in, s.n, s.k, s.gap),
        before(grad_w.values()),
        x_there(ctx, x, types.activations),
        w_there(ctx, w, s.n, s.k, types.weights),
        grad_y_there(ctx, with_zeros(grad_y, s.zeros), types.activations),
        grad_x_there(ctx, grad_x, types.activations),
        grad_w_there(ctx, grad_w) {
    args.x = x_there.view;
    args.w = w_there.ref;
    args.grad_y = grad_y_there.view;
    args.grad_x = grad_x_there.view;
    args.grad_w = {static_cast<float*>(grad_w_there.view.data), grad_w.view.shape,
                   grad_w.view.stride};
    args.compute = types.compute;
    args.grad_y.shape[1] += s.zeros;
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  void run(Context& ctx) {
    linear_backward(args, ctx);
    grad_x_there.fetch();
    grad_w_there.fetch();
  }
  void run_and_compare(Context& ctx) {
    auto truth = reference<double>();
    auto plain = reference<float>();
    for (std::size_t i = 0; i < before.size(); ++i) {
      truth.w[i] += before[i];
      plain.w[i] += before[i];
    }
    if (types.activations == DType::kBf16) plain.x = through_bf16(plain.x);
    run(ctx);
    expect_within(grad_x.values(), plain.x, truth.x, "grad_x of " + s.name(), rounding_of_x());
    expect_within(grad_w.values(), plain.w, truth.w, "grad_w of " + s.name());
    EXPECT_TRUE(grad_x.gap_untouched() && grad_w.gap_untouched()) << s.name();
  }

  // Products with bf16 weights are made by tensor cores, also in fp32. These take 16 numbers of a
  // sum at a time and cut what it cannot hold, half a unit of its last place on average and always
  // towards zero.
  double rounding_of_x() const {
    const bool cut = types.compute == Compute::kBf16 || types.weights == DType::kBf16;
    return kFloatRounding + (cut ? static_cast<double>(s.n) / 16 * 0x1p-24 : 0);
  }

  Sizes s;
  Types types;
  PaddedRows x;
  std::vector<float> w;
  PaddedRows grad_y, grad_x, grad_w;
  std::vector<float> before;
  GpuMatrix x_there;
  GpuWeights w_there;
  GpuMatrix grad_y_there, grad_x_there, grad_w_there;
  LinearBackwardArgs args;

 private:
  template <class T>
  LinearRefGradients<T> reference() const {
    const bool bf16 = types.compute == Compute::kBf16;
    const auto cast = [](const std::vector<float>& values, bool rounded) {
      const auto taken = rounded ? through_bf16(values) : values;
      return std::vector<T>(taken.begin(), taken.end());
    };
    return linear_backward_ref<T>(cast(x.values(), bf16),
                                  cast(w, bf16 || types.weights == DType::kBf16),
                                  cast(grad_y.values(), bf16), s.rows, s.n, s.k);
  }
};

class CudaLinearBackward : public ::testing::TestWithParam<Types> {};

TEST_P(CudaLinearBackward, AgreesWithTheOracle) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t gap : {0, 1, 8}) {
    for (const std::int64_t k : {1, 7, 64}) {
      for (const std::int64_t n : {1, 8, 67}) {
        for (const std::int64_t rows : {1, 2, 17, 64}) {
          Case({rows, n, k, gap}, GetParam(), ctx).run_and_compare(ctx);
        }
      }
    }
    Case({131, 96, 257, gap}, GetParam(), ctx).run_and_compare(ctx);
    Case({128, 264, 40, gap}, GetParam(), ctx).run_and_compare(ctx);
  }
  Case({2048, 136, 256}, GetParam(), ctx).run_and_compare(ctx);
  Case({33, 4100, 72}, GetParam(), ctx).run_and_compare(ctx);
}

TEST_P(CudaLinearBackward, NothingToAdd) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  Case({0, 5, 7}, GetParam(), ctx).run_and_compare(ctx);
  Case({5, 0, 7}, GetParam(), ctx).run_and_compare(ctx);
  Case({5, 7, 0}, GetParam(), ctx).run_and_compare(ctx);
}

TEST_P(CudaLinearBackward, AddsUpWhatCallsGive) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  Case c({65, 24, 40}, GetParam(), ctx);
  c.run(ctx);
  const auto once = c.grad_w.values();
  c.run(ctx);
  const auto twice = c.grad_w.values();
  for (std::size_t i = 0; i < once.size(); ++i) {
    // Three roundings of a sum.
    EXPECT_NEAR(twice[i] - once[i], once[i] - c.before[i], 0x1p-22 * (1 + std::abs(twice[i])));
  }
}

TEST_P(CudaLinearBackward, AssignsWhereItShall) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const Sizes sizes : {Sizes{65, 24, 40}, Sizes{0, 5, 7}, Sizes{4096, 64, 72}}) {
    Case added(sizes, GetParam(), ctx, 0), assigned(sizes, GetParam(), ctx, kNan);
    assigned.args.accumulate_w = false;
    added.run(ctx);
    assigned.run(ctx);
    EXPECT_TRUE(assigned.grad_w.values() == added.grad_w.values()) << sizes.name();
    EXPECT_TRUE(assigned.grad_w.gap_untouched());
  }
}

// in_proj of 12 heads has 1716 rows with one rank and 2100 with four.
TEST_P(CudaLinearBackward, ColumnsOfZerosChangeNoGradient) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const Sizes sizes :
       {Sizes{130, 1716, 384, 0, 4}, Sizes{33, 2100, 72, 8, 4}, Sizes{67, 13, 64, 0, 3},
        Sizes{64, 13, 7, 5, 3}, Sizes{1, 1, 8, 0, 7}, Sizes{2, 8, 16, 1, 5}, Sizes{0, 5, 7, 1, 3},
        Sizes{5, 0, 7, 1, 8}, Sizes{5, 7, 0, 1, 1}}) {
    Case added(sizes, GetParam(), ctx), assigned(sizes, GetParam(), ctx, kNan);
    poison(linear_backward_workspace_bytes(added.args, ctx), ctx);
    added.run_and_compare(ctx);
    Case from_zeros(sizes, GetParam(), ctx, 0);
    assigned.args.accumulate_w = false;
    from_zeros.run(ctx);
    assigned.run(ctx);
    EXPECT_TRUE(assigned.grad_w.values() == from_zeros.grad_w.values()) << sizes.name();
    EXPECT_TRUE(same_bits(assigned.grad_x.values(), added.grad_x.values())) << sizes.name();
  }
}

// Few outputs and many rows: the sum over rows is made in pieces.
TEST_P(CudaLinearBackward, EqualCallsGiveEqualBits) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const Sizes sizes : {Sizes{16384, 72, 128}, Sizes{300, 8192, 64}, Sizes{1001, 77, 65}}) {
    Case one(sizes, GetParam(), ctx);
    one.run(ctx);
    for (int i = 0; i < 3; ++i) {
      Context other(on_gpu());
      Case again(sizes, GetParam(), other);
      again.run(other);
      EXPECT_TRUE(same_bits(again.grad_x.values(), one.grad_x.values())) << sizes.name();
      EXPECT_TRUE(same_bits(again.grad_w.values(), one.grad_w.values())) << sizes.name();
    }
  }
}

TEST_P(CudaLinearBackward, OneGradientAlone) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  Case both({40, 21, 33}, GetParam(), ctx), x({40, 21, 33}, GetParam(), ctx),
      w({40, 21, 33}, GetParam(), ctx);
  both.run(ctx);
  x.args.grad_w = {};
  x.args.x = {};
  x.run(ctx);
  EXPECT_TRUE(same_bits(x.grad_x.values(), both.grad_x.values()));
  EXPECT_TRUE(same_bits(x.grad_w.values(), x.before));
  w.args.grad_x = {};
  w.args.w.data = nullptr;
  w.run(ctx);
  EXPECT_TRUE(same_bits(w.grad_w.values(), both.grad_w.values()));
}

TEST_P(CudaLinearBackward, WorkspaceIsWhatWasAnnounced) {
  SKIP_WITHOUT_GPU();
  for (const Sizes sizes : {Sizes{3, 70, 40}, Sizes{1300, 41, 70}, Sizes{5, 0, 7},
                            Sizes{65, 13, 40, 1, 3}, Sizes{3, 1716, 50, 0, 4}}) {
    Context ctx(on_gpu());
    Case c(sizes, GetParam(), ctx);
    c.run(ctx);
    EXPECT_LE(ctx.workspace().peak_bytes(), linear_backward_workspace_bytes(c.args, ctx));
    EXPECT_GE(ctx.workspace().peak_bytes() + 4096, linear_backward_workspace_bytes(c.args, ctx));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaLinearBackward,
                         ::testing::Values(Types{DType::kF32, Compute::kF32, DType::kF32},
                                           Types{DType::kBf16, Compute::kF32, DType::kF32},
                                           Types{DType::kF32, Compute::kBf16, DType::kF32},
                                           Types{DType::kBf16, Compute::kBf16, DType::kF32},
                                           Types{DType::kF32, Compute::kBf16, DType::kBf16},
                                           Types{DType::kBf16, Compute::kBf16, DType::kBf16}),
                         name_of);

TEST(CudaLinearBackwardOp, NanAndInfinityStayWhereTheyBelong) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const float bad : {kNan, kInf}) {
    for (const Types types : {Types{}, Types{DType::kBf16, Compute::kBf16, DType::kF32}}) {
      Case c({35, 21, 19}, types, ctx);
      c.x.view(3, 18) = bad;
      c.grad_y.view(7, 20) = bad;
      GpuMatrix x(ctx, c.x), grad_y(ctx, c.grad_y);
      c.args.x = x.view;
      c.args.grad_y = grad_y.view;
      c.run_and_compare(ctx);
    }
  }
}

TEST(CudaLinearBackwardOp, RefusesBf16InProductsOfF32) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  Case c({2, 4, 8}, {DType::kBf16, Compute::kBf16, DType::kBf16}, ctx);
  c.args.compute = Compute::kF32;
  EXPECT_NE(error_of([&] { linear_backward(c.args, ctx); }).find("BF16"), std::string::npos);
}

}  // namespace
}  // namespace mamba3
