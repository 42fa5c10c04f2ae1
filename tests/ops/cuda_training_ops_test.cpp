// The small ops of training on a GPU against their oracles. Skipped where there is no GPU.
#include "core/arena.h"
#include "gpu_case.h"
#include "gradient_case.h"
#include "ops/adamw/adamw.h"
#include "ops/adamw/adamw_ref.h"
#include "ops/cuda_ops.h"
#include "ops/embedding_backward/embedding_backward_ref.h"
#include "ops/global_norm/global_norm_ref.h"
#include "ops/rms_norm_backward/rms_norm_backward_ref.h"
#include "ops/swiglu_backward/swiglu_backward_ref.h"

namespace mamba3 {
namespace {

using testing::all;
using testing::doubles;
using testing::expect_within;
using testing::GpuArray;
using testing::GpuRows;
using testing::GpuRowsOf;
using testing::on_gpu;
using testing::random_ids;

std::vector<float> rounded_to_bf16(std::vector<float> values) {
  for (float& value : values) value = to_float(to_bf16(value));
  return values;
}

// Of one type or the other, so that sums differ by no rounding of inputs.
template <class T>
std::vector<float> random_of(std::int64_t count, std::uint64_t seed, float scale = 1) {
  const auto values = random_floats(count, seed, scale);
  return std::is_same_v<T, Bf16> ? rounded_to_bf16(values) : values;
}

// Outputs that are rounded to bf16 are as good as the plain run's, rounded, or a rounding worse.
template <class T>
void expect_within_type(const std::vector<float>& got, const std::vector<float>& plain,
                        const std::vector<double>& truth, const std::string& what) {
  if constexpr (std::is_same_v<T, float>) {
    expect_within(got, plain, truth, what);
  } else {
    const Comparison c = compare(all(got), all(rounded_to_bf16(plain)), all(truth), kBf16Rounding);
    EXPECT_TRUE(c.ok) << what << ": error " << c.error << ", bound " << c.bound;
  }
}

// G: the type of grad_y.
template <class G>
struct NormCase {
  NormCase(std::int64_t rows_in, std::int64_t d_in, std::int64_t gap)
      : rows(rows_in),
        d(d_in),
        residual(random_floats(rows * d, 1, 3), rows, d, gap),
        weight(random_floats(d, 2)),
        grad_y(random_of<G>(rows * d, 3), rows, d, gap),
        grad_residual(random_floats(rows * d, 4), rows, d, gap),
        rounded(rows, d, gap),
        grad_weight(random_floats(d, 5)) {}
  template <class T>
  RmsNormRefGradients<T> reference() const {
    const auto cast = [](const std::vector<float>& values) {
      return std::vector<T>(values.begin(), values.end());
    };
    auto out = rms_norm_backward_ref<T>(cast(residual.values()), cast(weight),
                                        cast(grad_y.values()), static_cast<T>(eps));
    const auto before = grad_residual.values();
    for (std::size_t i = 0; i < before.size(); ++i) out.residual[i] += before[i];
    for (std::size_t i = 0; i < grad_weight.size(); ++i) out.weight[i] += grad_weight[i];
    return out;
  }
  void run(Context& ctx, bool with_weight = true) {
    const GpuArray<float> weight_there(ctx, all(weight)), grad_weight_there(ctx, all(grad_weight));
    GpuRows residual_there(ctx, residual), grad_residual_there(ctx, grad_residual);
    GpuRowsOf<G> grad_y_there(ctx, grad_y);
    GpuRowsOf<Bf16> rounded_there(ctx, rounded);
    RmsNormBackwardArgs args;
    args.residual = residual_there.view;
    args.weight = weight_there.data();
    args.eps = eps;
    args.grad_y = grad_y_there.view;
    args.grad_residual = grad_residual_there.view;
    args.grad_weight = with_weight ? grad_weight_there.data() : nullptr;
    args.rounded = rounded_there.view;
    rms_norm_backward(args, ctx);
    grad_residual_there.fetch();
    rounded_there.fetch();
    grad_weight_there.copy_to(grad_weight);
    workspace_bytes = rms_norm_backward_workspace_bytes(args, ctx);
  }
  void run_and_compare(Context& ctx) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(d));
    const auto truth = reference<double>();
    const auto plain = reference<float>();
    run(ctx);
    expect_within(grad_residual.values(), plain.residual, truth.residual, "residual");
    expect_within(grad_weight, plain.weight, truth.weight, "weight");
    EXPECT_TRUE(same_bits(rounded.values(), rounded_to_bf16(grad_residual.values())));
    EXPECT_TRUE(grad_residual.gap_untouched() && rounded.gap_untouched());
  }
  std::int64_t rows, d;
  float eps = 1e-5f;
  PaddedRows residual;
  std::vector<float> weight;
  PaddedRows grad_y, grad_residual, rounded;
  std::vector<float> grad_weight;
  std::size_t workspace_bytes = 0;
};

TEST(CudaRmsNormBackward, AgreesWithTheOracle) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t gap : {0, 3, 4}) {
    for (const std::int64_t d : {1, 3, 63, 128, 260, 384, 1028, 2048, 5000}) {
      for (const std::int64_t rows : {0, 1, 2, 131}) {
        NormCase<float>(rows, d, gap).run_and_compare(ctx);
        NormCase<Bf16>(rows, d, gap).run_and_compare(ctx);
      }
    }
  }
  // Wider than what a thread keeps, in whole vectors; more rows than all blocks take at once.
  NormCase<Bf16>(2, 6144, 0).run_and_compare(ctx);
  NormCase<float>(5003, 384, 0).run_and_compare(ctx);
  NormCase<Bf16>(1501, 770, 0).run_and_compare(ctx);
}

TEST(CudaRmsNormBackward, TheSameBitsEachTime) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  NormCase<Bf16> one(3001, 384, 0), again(3001, 384, 0), without(3001, 384, 0);
  one.run(ctx);
  EXPECT_LE(ctx.workspace().peak_bytes(), one.workspace_bytes);
  again.run(ctx);
  without.run(ctx, false);
  EXPECT_TRUE(same_bits(one.grad_residual.values(), again.grad_residual.values()));
  EXPECT_TRUE(same_bits(one.grad_weight, again.grad_weight));
  EXPECT_TRUE(same_bits(one.grad_residual.values(), without.grad_residual.values()));
  EXPECT_TRUE(same_bits(without.grad_weight, random_floats(384, 5)));
}

// Squares of such rows over- or underflow in fp32, and so does 1 / rms^3.
TEST(CudaRmsNormBackward, HugeAndTinyRows) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const float size : {1e15f, 1e-15f, 1e-25f}) {
    NormCase<float> c(3, 64, 0);
    for (std::int64_t i = 0; i < 64; ++i) {
      c.residual.view(1, i) *= size;
      c.grad_y.view(1, i) *= std::min(size, 1.0f);
      c.grad_residual.view(1, i) = 0;
    }
    c.eps = 0;
    const auto truth = c.reference<double>();
    c.run(ctx);
    double scale = 0;
    for (std::int64_t i = 64; i < 128; ++i) scale = std::max(scale, std::abs(truth.residual[i]));
    for (std::int64_t i = 0; i < 64; ++i) {
      EXPECT_NEAR(c.grad_residual.view(1, i), truth.residual[64 + i], scale * 1e-6) << size;
    }
  }
}

TEST(CudaRmsNormBackward, KeepsNanInItsRow) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const float bad : {kNan, kInf}) {
    NormCase<float> c(3, 65, 1);
    c.grad_y.view(1, 64) = bad;
    c.run(ctx, false);
    for (std::int64_t i = 0; i < 65; ++i) {
      EXPECT_FALSE(std::isfinite(c.grad_residual.view(1, i)));
      EXPECT_TRUE(std::isfinite(c.grad_residual.view(0, i)));
      EXPECT_TRUE(std::isfinite(c.grad_residual.view(2, i)));
    }
  }
}

template <class T>
class CudaSwigluBackward : public ::testing::Test {
 protected:
  // Everything that the op gives, beside what swiglu does.
  struct Results {
    std::vector<float> grad_h, y, forward_y;
  };
  static Results run(const std::vector<float>& h, const std::vector<float>& grad_y,
                     std::int64_t rows, std::int64_t f, std::int64_t gap, Context& ctx) {
    PaddedRows in(h, rows, 2 * f, gap), grad(grad_y, rows, f, gap), out(rows, 2 * f, gap);
    PaddedRows y(rows, f, gap), forward(rows, f, gap);
    GpuRowsOf<T> in_there(ctx, in), grad_there(ctx, grad), out_there(ctx, out), y_there(ctx, y),
        forward_there(ctx, forward);
    swiglu({in_there.view, forward_there.view}, ctx);
    swiglu_backward({in_there.view, grad_there.view, out_there.view, y_there.view}, ctx);
    out_there.fetch();
    y_there.fetch();
    forward_there.fetch();
    EXPECT_TRUE(out.gap_untouched() && y.gap_untouched());
    // Onto its input, and without y.
    swiglu_backward({in_there.view, grad_there.view, in_there.view}, ctx);
    in_there.fetch();
    EXPECT_TRUE(same_bits(in.values(), out.values()));
    return {out.values(), y.values(), forward.values()};
  }
};
using BothTypes = ::testing::Types<float, Bf16>;
TYPED_TEST_SUITE(CudaSwigluBackward, BothTypes);

TYPED_TEST(CudaSwigluBackward, AgreesWithTheOracle) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t gap : {0, 3, 8}) {
    for (const std::int64_t f : {1, 7, 8, 12, 31, 64, 1500, 2048, 4104}) {
      for (const std::int64_t rows : {0, 1, 2, 33}) {
        const auto h = random_of<TypeParam>(rows * 2 * f, 7, 4);
        const auto grad_y = random_of<TypeParam>(rows * f, 8);
        const auto got = this->run(h, grad_y, rows, f, gap, ctx);
        expect_within_type<TypeParam>(got.grad_h, swiglu_backward_ref(h, grad_y, rows, f),
                                      swiglu_backward_ref(doubles(h), doubles(grad_y), rows, f),
                                      std::to_string(rows) + " x " + std::to_string(f));
        EXPECT_TRUE(same_bits(got.y, got.forward_y));
      }
    }
  }
}

// Each number by itself: within a few roundings of its terms, which cancel near gate = -1.28.
TYPED_TEST(CudaSwigluBackward, EverySizeOfTheGate) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  std::vector<float> gates = {0.0f, -0.0f, kNan, 3e38f, -3e38f, 1e-38f, -1e-38f};
  for (float g = 1e-6f; g < 2000; g *= 1.07f) {
    gates.push_back(g);
    gates.push_back(-g);
  }
  gates = std::is_same_v<TypeParam, Bf16> ? rounded_to_bf16(gates) : gates;
  const std::int64_t f = std::ssize(gates);
  const double rounding = std::is_same_v<TypeParam, Bf16> ? 0x1p-8 : 0x1p-21;
  for (const float up : {1.5f, -1e20f, 0.0f, kNan}) {
    auto h = rounded_to_bf16(std::vector<float>(gates.size(), up));
    h.insert(h.end(), gates.begin(), gates.end());
    const std::vector<float> grad_y(gates.size(), -0.75f);
    const auto got = this->run(h, grad_y, 1, f, 0, ctx).grad_h;
    const auto want = swiglu_backward_ref(doubles(h), doubles(grad_y), 1, f);
    for (std::int64_t i = 0; i < 2 * f; ++i) {
      ASSERT_TRUE(same_kind(got[i], static_cast<float>(want[i]))) << gates[i % f] << " " << up;
      if (!std::isfinite(want[i])) continue;
      const double terms = i < f ? 0 : std::abs(0.75 * h[i - f]);
      ASSERT_NEAR(got[i], want[i], (std::abs(want[i]) + terms) * rounding + 0x1p-126)
          << gates[i % f] << " " << up;
    }
  }
}

// Adds on a GPU and expects what the oracle adds; ids outside [0, v) count for nothing.
void expect_added(const std::vector<std::int32_t>& ids, std::int64_t v, std::int64_t d,
                  std::int64_t gap, Context& ctx) {
  SCOPED_TRACE(std::to_string(ids.size()) + " ids of " + std::to_string(v) + ", d " +
               std::to_string(d));
  const std::int64_t rows = std::ssize(ids);
  PaddedRows grad_y(random_floats(rows * d, 5), rows, d, gap);
  PaddedRows grad_table(random_floats(v * d, 6), v, d, gap);
  std::vector<std::int32_t> known;
  std::vector<float> known_rows;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (ids[row] < 0 || ids[row] >= v) continue;
    known.push_back(ids[row]);
    for (std::int64_t i = 0; i < d; ++i) known_rows.push_back(grad_y.view(row, i));
  }
  auto plain = grad_table.values();
  auto truth = doubles(plain);
  embedding_backward_ref(known, known_rows, d, plain);
  embedding_backward_ref(known, doubles(known_rows), d, truth);
  const GpuArray<std::int32_t> ids_there(ctx, all(ids));
  GpuRows grad_y_there(ctx, grad_y);
  std::vector<float> first;
  for (int run = 0; run < 2; ++run) {
    PaddedRows table(grad_table.values(), v, d, gap);
    GpuRows there(ctx, table);
    const EmbeddingBackwardArgs args{ids_there.span(), grad_y_there.view, there.view};
    embedding_backward(args, ctx);
    there.fetch();
    expect_within(table.values(), plain, truth, "table");
    EXPECT_TRUE(table.gap_untouched());
    if (run == 0) first = table.values();
    EXPECT_TRUE(same_bits(table.values(), first));
  }
}

TEST(CudaEmbeddingBackward, AgreesWithTheOracle) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t gap : {0, 3, 4}) {
    for (const std::int64_t d : {1, 7, 64, 260, 1028}) {
      for (const std::int64_t v : {1, 11, 500}) {
        for (const std::int64_t rows : {0, 1, 2, 31, 32, 33, 64, 700}) {
          expect_added(random_ids(rows, v), v, d, gap, ctx);
        }
      }
    }
  }
}

TEST(CudaEmbeddingBackward, FrequentIds) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  expect_added(std::vector<std::int32_t>(40000, 2), 3, 64, 0, ctx);
  auto ids = random_ids(30000, 128000);
  for (std::size_t i = 0; i < ids.size(); i += 10) ids[i] = 77;
  expect_added(ids, 128000, 16, 0, ctx);
}

TEST(CudaEmbeddingBackward, IdsOutsideTheTableCountForNothing) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  auto ids = random_ids(300, 50);
  for (std::size_t i = 0; i < ids.size(); i += 3) {
    ids[i] = std::array{-1, 50, std::numeric_limits<std::int32_t>::max(),
                        std::numeric_limits<std::int32_t>::min()}[i % 4];
  }
  expect_added(ids, 50, 12, 0, ctx);
  expect_added(std::vector<std::int32_t>(100, -1), 50, 12, 0, ctx);
}

TEST(CudaEmbeddingBackward, TakesTheWorkspaceThatItSays) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  const auto ids = random_ids(5000, 300);
  PaddedRows grad_y(5000, 8, 0), grad_table(300, 8, 0);
  const GpuArray<std::int32_t> ids_there(ctx, all(ids));
  const GpuRows grad_y_there(ctx, grad_y), table_there(ctx, grad_table);
  const EmbeddingBackwardArgs args{ids_there.span(), grad_y_there.view, table_there.view};
  embedding_backward(args, ctx);
  EXPECT_LE(ctx.workspace().peak_bytes(), embedding_backward_workspace_bytes(args, ctx));
  auto short_args = args;
  short_args.ids = short_args.ids.first(4999);
  EXPECT_NE(error_of([&] { embedding_backward(short_args, ctx); }).find("4999 ids"),
            std::string::npos);
}

double norm_of(const std::vector<std::vector<float>>& tensors, std::size_t skip, Context& ctx) {
  std::vector<GpuArray<float>> arrays;
  std::vector<std::span<const float>> spans;
  for (const auto& values : tensors) {
    arrays.emplace_back(ctx, all(values));
    spans.push_back(arrays.back().span().subspan(std::min(skip, values.size())));
  }
  const GpuArray<double> norm(ctx, all(std::vector<double>{-1.0}));
  global_norm({spans, norm.data()}, ctx);
  std::vector<double> out;
  norm.copy_to(out);
  return out[0];
}

TEST(CudaGlobalNorm, IsTheNormOfAllTogether) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  std::vector<std::vector<float>> many = {random_floats(7, 2, 1e15f)};
  for (std::uint64_t i = 0; i < 300; ++i) {
    many.push_back(random_floats(static_cast<std::int64_t>(i * 37 % 1000), i));
  }
  for (const auto& tensors :
       {std::vector<std::vector<float>>{},
        {random_floats(0, 3)},
        {random_floats(1, 1)},
        {random_floats(32768, 1), random_floats(0, 3)},
        {random_floats(200001, 1), random_floats(0, 3), random_floats(32769, 4)},
        many}) {
    // One element behind an aligned address, too.
    for (const std::size_t skip : {0, 1}) {
      std::vector<std::span<const float>> spans;
      for (const auto& values : tensors) {
        spans.push_back(all(values).subspan(std::min(skip, values.size())));
      }
      const double expected = global_norm_ref(spans);
      const double norm = norm_of(tensors, skip, ctx);
      EXPECT_NEAR(norm, expected, expected * 1e-12) << tensors.size();
      EXPECT_EQ(norm, norm_of(tensors, skip, ctx));
    }
  }
}

TEST(CudaGlobalNorm, ShowsNanAndInfinity) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const float bad : {kNan, kInf, -kInf}) {
    for (const std::size_t at : {0, 131070, 199999}) {
      auto values = random_floats(200000, 1);
      values[at] = bad;
      const double norm = norm_of({values}, 0, ctx);
      EXPECT_EQ(std::isnan(norm), std::isnan(bad));
      EXPECT_FALSE(std::isfinite(norm));
    }
  }
}

// A tensor with its moments, from `skip` elements behind an aligned address.
struct Tensor {
  explicit Tensor(std::int64_t count)
      : weights(random_floats(count, 1)), first(weights.size()), second(weights.size()) {}
  static std::vector<float> grad(std::int64_t count, std::int64_t step) {
    return random_floats(count, 100 + static_cast<std::uint64_t>(step), 1e-2f);
  }
  // One step, and whether `rounded` is what it should be.
  void run(AdamwArgs args, std::int64_t skip, Context& ctx) {
    const auto gradient = grad(std::ssize(weights), args.step);
    const GpuArray<float> weights_there(ctx, all(weights)), grad_there(ctx, all(gradient)),
        first_there(ctx, all(first)), second_there(ctx, all(second));
    const GpuArray<Bf16> rounded_there(ctx, all(std::vector<Bf16>(weights.size())));
    args.count = std::ssize(weights) - skip;
    args.weights = weights_there.data() + skip;
    args.grad = grad_there.data() + skip;
    args.first = first_there.data() + skip;
    args.second = second_there.data() + skip;
    args.rounded = rounded_there.data() + skip;
    adamw(args, ctx);
    weights_there.copy_to(weights);
    first_there.copy_to(first);
    second_there.copy_to(second);
    std::vector<Bf16> rounded;
    rounded_there.copy_to(rounded);
    for (std::size_t i = skip; i < rounded.size(); ++i) {
      ASSERT_EQ(rounded[i].bits, to_bf16(weights[i]).bits);
    }
  }
  std::vector<float> weights, first, second;
};

AdamwArgs hyper_parameters() {
  AdamwArgs args;
  args.rate = 3e-3;
  args.decay = 0.1;
  args.grad_scale = 0.3;
  return args;
}

TEST(CudaAdamw, AgreesWithTheOracle) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  for (const std::int64_t count : {0, 1, 7, 16, 65, 40003}) {
    Tensor tensor(count);
    auto weights = doubles(tensor.weights), first = doubles(tensor.first), second = first;
    auto plain_weights = tensor.weights, plain_first = tensor.first, plain_second = plain_first;
    AdamwArgs args = hyper_parameters();
    for (args.step = 1; args.step <= 12; ++args.step) {
      const auto grad = Tensor::grad(count, args.step);
      adamw_ref(args, doubles(grad), weights, first, second);
      adamw_ref(args, grad, plain_weights, plain_first, plain_second);
      tensor.run(args, 0, ctx);
    }
    expect_within(tensor.weights, plain_weights, weights, "weights");
    expect_within(tensor.first, plain_first, first, "first");
    expect_within(tensor.second, plain_second, second, "second");
  }
}

// Processors that fuse no multiply-add round once more.
TEST(CudaAdamw, EqualsTheCpuBitwise) {
  SKIP_WITHOUT_GPU();
  if ((hwy::SupportedTargets() & (HWY_AVX2 | HWY_AVX3)) == 0) GTEST_SKIP() << "no AVX2";
  Context cpu(with_threads(1)), ctx(on_gpu());
  for (const std::int64_t skip : {0, 1}) {
    Tensor there(10001), here(10001);
    AdamwArgs args = hyper_parameters();
    for (args.step = 1; args.step <= 5; ++args.step) {
      there.run(args, skip, ctx);
      const auto grad = Tensor::grad(10001, args.step);
      args.count = 10001 - skip;
      args.grad = grad.data() + skip;
      args.weights = here.weights.data() + skip;
      args.first = here.first.data() + skip;
      args.second = here.second.data() + skip;
      adamw(args, cpu);
    }
    EXPECT_TRUE(same_bits(there.weights, here.weights));
    EXPECT_TRUE(same_bits(there.first, here.first));
    EXPECT_TRUE(same_bits(there.second, here.second));
  }
}

TEST(CudaRoundBf16, EqualsTheCpu) {
  SKIP_WITHOUT_GPU();
  Context ctx(on_gpu());
  auto values = random_floats(5003, 1);
  values.insert(values.end(), {0.0f, -0.0f, kInf, -kInf, kNan, 3.4e38f, 1e-40f, 1 + 0x1p-8f,
                               1 + 3 * 0x1p-8f, 1 + 0x1p-8f + 0x1p-20f});
  const GpuArray<float> there(ctx, all(values));
  for (const std::int64_t skip : {0, 1, 2}) {
    const std::int64_t count = std::ssize(values) - skip;
    const GpuArray<Bf16> rounded(ctx, all(std::vector<Bf16>(values.size())));
    round_bf16({count, there.data() + skip, rounded.data() + skip}, ctx);
    std::vector<Bf16> got;
    rounded.copy_to(got);
    for (std::size_t i = skip; i < values.size(); ++i) {
      if (std::isnan(values[i])) {
        EXPECT_TRUE(std::isnan(to_float(got[i])));
      } else {
        EXPECT_EQ(got[i].bits, to_bf16(values[i]).bits) << values[i];
      }
    }
  }
}

}  // namespace
}  // namespace mamba3
