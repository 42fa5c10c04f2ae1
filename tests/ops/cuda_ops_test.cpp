// The small ops on a GPU against the CPU. Skipped where there is no GPU.
#include "ops/cuda_ops.h"

#include <array>
#include <string>
#include <tuple>

#include "core/arena.h"
#include "core/tolerance.h"
#include "gpu_case.h"
#include "gpu_matrix.h"

namespace mamba3 {
namespace {

using testing::all;
using testing::GpuArray;
using testing::GpuMatrix;
using testing::GpuRows;
using testing::kClose;
using testing::on_gpu;
using testing::through_bf16;

void expect_near(const std::vector<float>& got, const std::vector<float>& want, const char* name) {
  const double error = largest_error(all(got), all(want), ErrorMetric::kRelative);
  EXPECT_LE(error, kClose) << name;
}

TEST(CudaEmbedding, EqualsTheCpu) {
  SKIP_WITHOUT_GPU();
  Context cpu(with_threads(1));
  Context gpu(on_gpu());
  const std::vector<std::int32_t> ids = {10, 0, 0, 3, 10, 7, 1};
  const GpuArray<std::int32_t> gpu_ids(gpu, all(ids));
  for (const std::int64_t d : {1, 7, 64, 65, 2048}) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const std::int64_t gap : {0, 3, 4}) {
        const auto values = random_floats(11 * d, 5);
        const std::span<const std::byte> bytes(
            reinterpret_cast<const std::byte*>(values.data()),
            static_cast<std::size_t>(11 * d * dtype_bytes(dtype)));
        const GpuArray<std::byte> table(gpu, bytes);
        PaddedRows want(7, d, gap);
        PaddedRows got(7, d, gap);
        embedding({ids, {bytes.data(), dtype, {11, d}}, want.view}, cpu);
        GpuRows y(gpu, got);
        embedding({gpu_ids.span(), {table.data(), dtype, {11, d}}, y.view}, gpu);
        y.fetch();
        EXPECT_TRUE(same_bits(got.values(), want.values())) << d << " " << dtype_name(dtype);
        EXPECT_TRUE(got.gap_untouched());
      }
    }
  }
}

// Products on a GPU, x and w in either precision, at sizes around those that its kernels treat
// apart.
class CudaLinear : public ::testing::TestWithParam<std::tuple<LinearPath, Compute, DType>> {
 protected:
  std::vector<float> product(const std::vector<float>& x, std::int64_t rows,
                             std::span<const std::byte> w, std::int64_t n, std::int64_t k,
                             Context& ctx, bool accumulate = false) const {
    const auto [path, compute, dtype] = GetParam();
    const std::vector<float> before(rows * n, accumulate ? 0.5f : testing::kNan);
    PaddedRows x_rows(x, rows, k, 4), y_rows(before, rows, n, 3);
    const GpuArray<std::byte> w_there(ctx, w);
    GpuRows x_there(ctx, x_rows), y_there(ctx, y_rows);
    linear({x_there.view, {w_there.data(), dtype, {n, k}}, y_there.view, compute, path, accumulate},
           ctx);
    y_there.fetch();
    EXPECT_TRUE(y_rows.gap_untouched());
    return y_rows.values();
  }
};

TEST_P(CudaLinear, EqualsTheOracle) {
  SKIP_WITHOUT_GPU();
  const auto [path, compute, dtype] = GetParam();
  Context gpu(on_gpu());
  for (const auto& [rows, n, k] : std::vector<std::array<std::int64_t, 3>>{{1, 1, 1},
                                                                           {1, 5, 8},
                                                                           {2, 16, 7},
                                                                           {3, 33, 64},
                                                                           {8, 7, 513},
                                                                           {9, 40, 96},
                                                                           {17, 65, 130},
                                                                           {130, 96, 257}}) {
    auto x = random_floats(rows * k, 3);
    auto w = random_floats(n * k, 4);
    std::vector<Bf16> w_bf16;
    for (float& value : w) {
      w_bf16.push_back(to_bf16(value));
      if (dtype == DType::kBf16 || compute == Compute::kBf16) value = to_float(w_bf16.back());
    }
    const auto got = product(
        x, rows,
        dtype == DType::kBf16 ? std::as_bytes(std::span(w_bf16)) : std::as_bytes(std::span(w)), n,
        k, gpu);
    for (std::int64_t i = 0; i < rows * n; ++i) {
      double want = 0, magnitude = 0;
      for (std::int64_t j = 0; j < k; ++j) {
        float v = x[i / n * k + j];
        if (compute == Compute::kBf16) v = to_float(to_bf16(v));
        want += static_cast<double>(v) * w[i % n * k + j];
        magnitude += std::abs(static_cast<double>(v) * w[i % n * k + j]);
      }
      // fp32 sums; tensor cores keep two bits less of a product's tail.
      EXPECT_NEAR(got[i], want, magnitude * 0x1p-22 * (static_cast<double>(k) / 16 + 6))
          << rows << " x " << n << " x " << k << " at " << i;
    }
  }
}

TEST_P(CudaLinear, ARowsBitsDoNotDependOnTheOthers) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  const std::int64_t n = 200, k = 384;
  // Few rows have a path of their own on kSkinny; every number of rows shares one on kGemm.
  const std::int64_t most = std::get<0>(GetParam()) == LinearPath::kGemm ? 150 : 16;
  const auto x = random_floats(most * k, 5);
  const auto w = random_floats(n * k, 6);
  std::vector<Bf16> w_bf16;
  for (const float value : w) w_bf16.push_back(to_bf16(value));
  const auto bytes = std::get<2>(GetParam()) == DType::kBf16 ? std::as_bytes(std::span(w_bf16))
                                                             : std::as_bytes(std::span(w));
  for (const bool accumulate : {false, true}) {
    const auto all_rows = product(x, most, bytes, n, k, gpu, accumulate);
    for (const std::int64_t rows : {1, 2, 5, 9, 16}) {
      const std::vector<float> some(x.begin(), x.begin() + rows * k);
      const std::vector<float> want(all_rows.begin(), all_rows.begin() + rows * n);
      EXPECT_TRUE(same_bits(product(some, rows, bytes, n, k, gpu, accumulate), want)) << rows;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaLinear,
                         ::testing::Combine(::testing::Values(LinearPath::kSkinny,
                                                              LinearPath::kGemm),
                                            ::testing::Values(Compute::kF32, Compute::kBf16),
                                            ::testing::Values(DType::kF32, DType::kBf16)));

// As it comes to lie behind an odd number of rows.
TEST(CudaLinearWorkspace, MayBeginOnAnyCacheLine) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  const std::int64_t rows = 8193, n = 480, k = 2048;  // a product that uses it
  const GpuArray<Bf16> x(gpu, all(std::vector<Bf16>(rows * k, to_bf16(1))));
  const GpuArray<Bf16> w(gpu, all(std::vector<Bf16>(n * k, to_bf16(1))));
  const TensorRef weights{reinterpret_cast<const std::byte*>(w.data()), DType::kBf16, {n, k}};
  for (const std::int64_t lines : {0, 1, 2, 3}) {
    const GpuArray<float> y(gpu, all(std::vector<float>(rows * n, NAN)));
    ArenaScope scope(gpu.workspace());
    for (std::int64_t i = 0; i < lines; ++i) scope.allocate<std::byte>(kCacheLineBytes);
    LinearArgs args;
    args.x = TensorView<const Bf16, 2>(x.data(), {rows, k});
    args.w = weights;
    args.y = TensorView<float, 2>(y.data(), {rows, n});
    args.compute = Compute::kBf16;
    args.path = LinearPath::kGemm;
    linear(args, gpu);
    std::vector<float> got;
    y.copy_to(got);
    EXPECT_EQ(got, std::vector<float>(rows * n, k)) << lines;
  }
}

TEST(CudaGatherRows, EqualsTheCpu) {
  SKIP_WITHOUT_GPU();
  Context cpu(with_threads(1));
  Context gpu(on_gpu());
  const std::vector<std::int64_t> rows = {4, 4, 0, 8, 2};
  const GpuArray<std::int64_t> gpu_rows(gpu, all(rows));
  for (const std::int64_t d : {1, 7, 64, 2048, 20001, 70000}) {
    for (const std::int64_t gap : {0, 3, 4}) {
      PaddedRows x(random_floats(9 * d, 6), 9, d, gap);
      PaddedRows want(5, d, gap);
      PaddedRows got(5, d, gap);
      gather_rows({x.view, rows, want.view}, cpu);
      const GpuRows from(gpu, x);
      GpuRows y(gpu, got);
      gather_rows({from.view, gpu_rows.span(), y.view}, gpu);
      y.fetch();
      EXPECT_TRUE(same_bits(got.values(), want.values())) << d;
      EXPECT_TRUE(got.gap_untouched());
    }
  }
}

TEST(CudaGatherRows, Bf16GoesAsItIs) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  const std::vector<std::int64_t> rows = {4, 4, 0, 8, 2};
  const GpuArray<std::int64_t> gpu_rows(gpu, all(rows));
  for (const std::int64_t d : {2, 6, 8, 4096, 20002}) {
    for (const std::int64_t gap : {0, 2, 8}) {
      PaddedRows x(through_bf16(random_floats(9 * d, 6)), 9, d, gap);
      PaddedRows got(5, d, gap);
      const GpuMatrix from(gpu, x, DType::kBf16);
      GpuMatrix y(gpu, got, DType::kBf16);
      gather_rows({from.view, gpu_rows.span(), y.view}, gpu);
      y.fetch();
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto to = static_cast<std::int64_t>(i);
        EXPECT_TRUE(std::equal(&got.view(to, 0), &got.view(to, 0) + d, &x.view(rows[i], 0))) << d;
      }
      EXPECT_TRUE(got.gap_untouched());
    }
  }
  PaddedRows odd(9, 7, 1), few(5, 7, 1);
  const GpuMatrix from(gpu, odd, DType::kBf16), to(gpu, few, DType::kBf16);
  EXPECT_THROW(gather_rows({from.view, gpu_rows.span(), to.view}, gpu), Error);
}

struct NormCase {
  NormCase(std::int64_t rows, std::int64_t d, std::int64_t gap)
      : residual(random_floats(rows * d, 1, 3), rows, d, gap),
        hidden(random_floats(rows * d, 2), rows, d, gap),
        y(rows, d, gap) {}
  PaddedRows residual, hidden, y;
};

void expect_norm(std::int64_t rows, std::int64_t d, std::int64_t gap, bool with_hidden, bool shared,
                 Context& cpu, Context& gpu) {
  SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(d) + " + " + std::to_string(gap));
  NormCase want(rows, d, gap);
  NormCase got(rows, d, gap);
  const auto weight = random_floats(d, 3);
  RmsNormArgs args;
  args.residual = want.residual.view;
  if (with_hidden) args.hidden = want.hidden.view;
  args.weight = weight.data();
  args.y = shared ? want.hidden.view : want.y.view;
  rms_norm(args, cpu);

  const GpuArray<float> gpu_weight(gpu, all(weight));
  GpuRows residual(gpu, got.residual), hidden(gpu, got.hidden), y(gpu, got.y);
  args.residual = residual.view;
  if (with_hidden) args.hidden = hidden.view;
  args.weight = gpu_weight.data();
  args.y = shared ? hidden.view : y.view;
  rms_norm(args, gpu);
  for (GpuRows* part : {&residual, &hidden, &y}) part->fetch();
  EXPECT_TRUE(same_bits(got.residual.values(), want.residual.values()));
  expect_near(shared ? got.hidden.values() : got.y.values(),
              shared ? want.hidden.values() : want.y.values(), "y");
  EXPECT_TRUE(got.residual.gap_untouched() && got.hidden.gap_untouched() && got.y.gap_untouched());
}

TEST(CudaRmsNorm, TheSumMayGoElsewhere) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const std::int64_t d : {1, 65, 384, 512, 513, 2048, 5000}) {
    for (const std::int64_t rows : {1, 7, 9}) {
      NormCase in_place(rows, d, 4), apart(rows, d, 4);
      PaddedRows sum(rows, d, 4);
      const auto before = apart.residual.values();
      const GpuArray<float> weight(gpu, all(random_floats(d, 3)));
      GpuRows total(gpu, sum);
      for (NormCase* c : {&in_place, &apart}) {
        GpuRows residual(gpu, c->residual), hidden(gpu, c->hidden), y(gpu, c->y);
        RmsNormArgs args{residual.view, hidden.view, weight.data(), 1e-5f, y.view};
        if (c == &apart) args.sum = total.view;
        rms_norm(args, gpu);
        for (GpuRows* part : {&residual, &y, &total}) part->fetch();
      }
      EXPECT_TRUE(same_bits(sum.values(), in_place.residual.values())) << rows << " x " << d;
      EXPECT_TRUE(same_bits(apart.y.values(), in_place.y.values())) << rows << " x " << d;
      EXPECT_TRUE(same_bits(apart.residual.values(), before)) << rows << " x " << d;
      EXPECT_TRUE(sum.gap_untouched());
    }
  }
}

TEST(CudaRmsNorm, EqualsTheCpu) {
  SKIP_WITHOUT_GPU();
  Context cpu(with_threads(1));
  Context gpu(on_gpu());
  for (const std::int64_t d : {1, 3, 64, 65, 511, 512, 513, 768, 2048, 4100, 5000, 5001}) {
    for (const std::int64_t rows : {1, 2, 65}) {
      for (const std::int64_t gap : {0, 3, 4}) {
        expect_norm(rows, d, gap, false, false, cpu, gpu);
        expect_norm(rows, d, gap, true, false, cpu, gpu);
        expect_norm(rows, d, gap, true, true, cpu, gpu);
      }
    }
  }
}

void expect_swiglu(const std::vector<float>& h, std::int64_t rows, std::int64_t f, std::int64_t gap,
                   Context& cpu, Context& gpu) {
  PaddedRows in(h, rows, 2 * f, gap);
  PaddedRows want(rows, f, gap);
  PaddedRows got(rows, f, gap);
  swiglu({in.view, want.view}, cpu);
  const GpuRows from(gpu, in);
  GpuRows y(gpu, got);
  swiglu({from.view, y.view}, gpu);
  y.fetch();
  expect_near(got.values(), want.values(), "swiglu");
  EXPECT_TRUE(got.gap_untouched());
}

TEST(CudaSwiglu, EqualsTheCpu) {
  SKIP_WITHOUT_GPU();
  Context cpu(with_threads(1));
  Context gpu(on_gpu());
  for (const std::int64_t f : {1, 2, 7, 8, 31, 64, 1500, 4096}) {
    for (const std::int64_t rows : {1, 2, 33}) {
      for (const std::int64_t gap : {0, 3, 4}) {
        expect_swiglu(random_floats(rows * 2 * f, 7, 4), rows, f, gap, cpu, gpu);
      }
    }
  }
  const std::vector<float> gates = {0.0f, -0.0f, kNan, kInf, -kInf, 80.0f, -80.0f, 1e-30f};
  for (const float up : {1.5f, -1e20f, kInf, kNan}) {
    std::vector<float> h(gates.size(), up);
    h.insert(h.end(), gates.begin(), gates.end());
    expect_swiglu(h, 1, static_cast<std::int64_t>(gates.size()), 0, cpu, gpu);
  }
  // The exponential of these is 0 or infinite.
  expect_swiglu({2.0f, -3.0f, 300.0f, -300.0f}, 1, 2, 0, cpu, gpu);
}

}  // namespace
}  // namespace mamba3
