// Products with what stands around them on a GPU. Skipped where there is no GPU.
#include <array>
#include <cmath>

#include "core/tolerance.h"
#include "fused_linear_case.h"
#include "gpu_case.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rms_norm/rms_norm_ref.h"

namespace mamba3 {
namespace {

using testing::all;
using testing::FusedCase;
using testing::FusedData;
using testing::GpuArray;
using testing::on_gpu;

// Rows of either type in a GPU's memory, with a gap of NaNs behind each.
class Rows {
 public:
  Rows(Context& ctx, const std::vector<float>& values, std::int64_t rows, std::int64_t columns,
       std::int64_t gap, bool bf16)
      : bf16_(bf16),
        padded_(values, rows, columns, gap),
        floats_(ctx, bf16 ? std::span<const float>() : all(padded_.storage)),
        halves_(ctx, all(bf16 ? rounded(padded_.storage) : std::vector<Bf16>())) {}

  Matrix matrix() const {
    if (bf16_) return TensorView<Bf16, 2>(halves_.data(), padded_.view.shape, padded_.view.stride);
    return TensorView<float, 2>(floats_.data(), padded_.view.shape, padded_.view.stride);
  }
  std::vector<float> values() {
    if (bf16_) {
      std::vector<Bf16> halves;
      halves_.copy_to(halves);
      for (std::size_t i = 0; i < halves.size(); ++i) padded_.storage[i] = to_float(halves[i]);
    } else {
      floats_.copy_to(padded_.storage);
    }
    EXPECT_TRUE(padded_.gap_untouched());
    return padded_.values();
  }

 private:
  static std::vector<Bf16> rounded(const std::vector<float>& values) {
    std::vector<Bf16> out;
    for (const float value : values) out.push_back(to_bf16(value));
    return out;
  }
  bool bf16_;
  PaddedRows padded_;
  GpuArray<float> floats_;
  GpuArray<Bf16> halves_;
};

constexpr std::int64_t kGap = 8;  // rows still begin on 16 bytes

// Rows [first, first + fused.rows) of the data.
std::vector<float> run(const FusedCase& fused, const FusedData& data, std::int64_t first,
                       Context& ctx, std::int64_t gap = kGap) {
  const std::int64_t outs = fused.n - fused.rest;
  const auto rows_of = [&](const std::vector<float>& v, std::int64_t columns) {
    return std::vector<float>(v.begin() + first * columns,
                              v.begin() + (first + fused.rows) * columns);
  };
  const auto before = rows_of(data.before, outs);  // matters where it is added to, without a rest
  Rows x(ctx, rows_of(data.x, fused.k), fused.rows, fused.k, gap, fused.x_is_bf16);
  Rows y(ctx, before, fused.rows, outs, gap, fused.y_is_bf16);
  Rows rest(ctx, rows_of(data.before, fused.rest), fused.rows, fused.rest, gap, false);
  const GpuArray<float> norm(ctx, all(data.norm));
  const GpuArray<std::byte> w(ctx, data.weight_bytes(fused.weights));
  FusedLinearArgs args;
  args.x = x.matrix();
  if (fused.norm) args.norm_weight = norm.data();
  args.w = {w.data(), fused.weights, {fused.swiglu ? 2 * fused.n : fused.n, fused.k}};
  args.y = y.matrix();
  if (fused.rest > 0) args.rest = rest.matrix();
  args.swiglu = fused.swiglu;
  args.accumulate = fused.accumulate;
  args.compute = fused.compute;
  args.path = fused.path;
  fused_linear(args, ctx);
  if (fused.rest == 0) return y.values();
  return testing::side_by_side(y.values(), rest.values(), fused.rows);
}

FusedCase streamed(std::int64_t rows, std::int64_t n, std::int64_t k) {
  FusedCase fused{rows, n, k};
  fused.compute = Compute::kBf16;
  fused.weights = DType::kBf16;
  return fused;
}

// Norm or not, by SwiGLU, a sum or nothing, by the types of x and y.
std::vector<FusedCase> kinds(const FusedCase& shape) {
  std::vector<FusedCase> out;
  for (const bool norm : {false, true}) {
    for (const bool x_is_bf16 : {false, true}) {
      for (int after = 0; after < 3; ++after) {
        for (const bool y_is_bf16 : {false, true}) {
          FusedCase fused = shape;
          fused.norm = norm;
          fused.x_is_bf16 = x_is_bf16;
          fused.swiglu = after == 1;
          fused.accumulate = after == 2;
          fused.y_is_bf16 = y_is_bf16;
          const bool fp32 = shape.compute == Compute::kF32;
          if ((norm && x_is_bf16) || (fused.accumulate && y_is_bf16)) continue;
          if (fp32 && (x_is_bf16 || y_is_bf16)) continue;
          out.push_back(fused);
        }
      }
    }
  }
  return out;
}

void expect_all_kinds(const FusedCase& shape, Context& ctx) {
  for (const FusedCase& fused : kinds(shape)) {
    const FusedData data(fused);
    testing::expect_fused(run(fused, data, 0, ctx), data, fused);
    testing::expect_fused(run(fused, data, 0, ctx, 3), data, fused);
  }
}

TEST(CudaFusedLinear, EqualsTheOracle) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  // Sizes around a half, a stage and the ends of what the kernel for few rows takes.
  for (const std::int64_t k : {7, 8, 32, 96, 1024, 1056, 2048, 3840, 4096, 4128}) {
    for (const std::int64_t rows : {1, 3, 16}) expect_all_kinds(streamed(rows, 24, k), gpu);
  }
  for (const std::int64_t n : {1, 8, 17, 1500}) expect_all_kinds(streamed(2, n, 64), gpu);
  for (std::int64_t rows = 1; rows <= 17; ++rows) expect_all_kinds(streamed(rows, 40, 160), gpu);
}

// Blocks with more than one tile of weights, where registers do not hold all of x: stages along k
// that are even, odd and not whole in number.
TEST(CudaFusedLinear, ManyOutputsEqualTheOracle) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const std::int64_t k : {2592, 4096}) {
    for (const std::int64_t rows : {2, 9}) {
      for (const bool x_is_bf16 : {false, true}) {
        FusedCase fused = streamed(rows, 2300, k);
        fused.x_is_bf16 = x_is_bf16;
        const FusedData data(fused);
        testing::expect_fused(run(fused, data, 0, gpu), data, fused);
      }
    }
  }
}

TEST(CudaFusedLinear, ManyRowsEqualTheOracle) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const std::int64_t rows : {17, 63, 64, 65, 128, 129, 256, 257}) {
    expect_all_kinds(streamed(rows, 88, 200), gpu);
  }
  for (const std::int64_t n : {8, 80, 168, 1360}) expect_all_kinds(streamed(33, n, 328), gpu);
}

// As many rows as the kernel for a few dozen takes, at the ends of that: strips of each width, and
// outputs so few that k is cut in parts.
TEST(CudaFusedLinear, ABatchEqualsTheOracle) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  const auto expect_right = [&](std::int64_t rows, std::int64_t n, std::int64_t k, bool swiglu) {
    FusedCase fused = streamed(rows, n, k);
    fused.x_is_bf16 = true;
    fused.swiglu = fused.y_is_bf16 = swiglu;
    for (const bool accumulate : {false, true}) {
      fused.accumulate = accumulate;
      if (swiglu && accumulate) continue;
      const FusedData data(fused);
      testing::expect_fused(run(fused, data, 0, gpu), data, fused);
    }
  };
  for (const std::int64_t rows : {32, 33, 64, 65}) expect_right(rows, 2048, 2056, false);
  for (const std::int64_t n : {8200, 8672, 9440, 16904}) expect_right(33, n, 520, false);
  expect_right(63, 4104, 520, true);
}

FusedCase tiled(std::int64_t rows, std::int64_t n, std::int64_t k) {
  FusedCase fused = streamed(rows, n, k);
  fused.path = LinearPath::kGemm;
  return fused;
}

TEST(CudaFusedLinear, TilesEqualTheOracle) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const std::int64_t rows : {1, 16, 127, 128, 129, 257}) {
    expect_all_kinds(tiled(rows, 88, 200), gpu);
  }
  for (const std::int64_t n : {8, 128, 136, 256, 264, 520}) {
    expect_all_kinds(tiled(33, n, 328), gpu);
  }
  for (const std::int64_t k : {8, 64, 72, 256, 1096}) expect_all_kinds(tiled(131, 40, k), gpu);
}

// More tiles than a card has multiprocessors, in bands of which the last is not whole.
TEST(CudaFusedLinear, ManyTilesEqualTheOracle) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  FusedCase fused = tiled(4400, 520, 72);
  fused.x_is_bf16 = fused.y_is_bf16 = fused.swiglu = true;
  const FusedData data(fused);
  testing::expect_fused(run(fused, data, 0, gpu), data, fused);
}

TEST(CudaFusedLinear, PutsTheRestElsewhere) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const std::int64_t outs : {256, 512, 200}) {  // in tiles of one type, or one by one
    for (const std::int64_t rest : {8, 480}) {
      for (const std::int64_t rows : {5, 130}) {
        FusedCase fused = tiled(rows, outs + rest, 136);
        fused.rest = rest;
        fused.x_is_bf16 = fused.y_is_bf16 = true;
        const FusedData data(fused);
        testing::expect_fused(run(fused, data, 0, gpu), data, fused);
        testing::expect_fused(run(fused, data, 0, gpu, 3), data, fused);
      }
    }
  }
}

// A product that adds onto a residual, and one that reads the norm of the sum.
struct SharedNorm {
  FusedCase first, second;  // second.k is first.n
  FusedData data, weights;  // of `weights` only those of the second
  std::vector<float> norm;
  std::vector<double> truth;
  std::vector<float> naive;  // with a rounded norm

  SharedNorm(std::int64_t rows, std::int64_t k, std::int64_t width, std::int64_t n, bool swiglu)
      : first(tiled(rows, width, k)),
        second(behind(rows, width, n, swiglu)),
        data(first),
        weights(second),
        norm(random_floats(width, 8, 0.2f)) {
    for (float& value : norm) value += 1;
    make_truth();
  }

  void make_truth() {
    const auto normed = rms_norm_ref(data.truth, {norm.begin(), norm.end()}, first.rows, first.n,
                                     FusedLinearArgs().norm_eps);
    truth = products(normed);
    std::vector<double> rounded;
    for (const double value : normed) {
      rounded.push_back(to_float(to_bf16(static_cast<float>(value))));
    }
    naive.clear();
    for (const double value : products(rounded)) naive.push_back(static_cast<float>(value));
  }

 private:
  static FusedCase tiled(std::int64_t rows, std::int64_t n, std::int64_t k) {
    FusedCase out = mamba3::tiled(rows, n, k);
    out.x_is_bf16 = out.accumulate = true;
    return out;
  }
  static FusedCase behind(std::int64_t rows, std::int64_t width, std::int64_t n, bool swiglu) {
    FusedCase out = mamba3::tiled(rows, n, width);
    out.x_is_bf16 = out.y_is_bf16 = true;
    out.swiglu = swiglu;
    if (!swiglu) out.rest = n - 256;
    return out;
  }
  std::vector<double> products(const std::vector<double>& x) const {
    const std::int64_t n = second.n, k = second.k;
    const auto dot = [&](std::int64_t row, std::int64_t out) {
      double sum = 0;
      for (std::int64_t i = 0; i < k; ++i) sum += x[row * k + i] * weights.w[out * k + i];
      return sum;
    };
    std::vector<double> out;
    for (std::int64_t i = 0; i < second.rows * n; ++i) {
      const double up = dot(i / n, i % n), gate = second.swiglu ? dot(i / n, n + i % n) : 0;
      out.push_back(second.swiglu ? up * gate / (1 + std::exp(-gate)) : up);
    }
    return out;
  }
};

struct SharedNormResult {
  bool taken = false;
  std::vector<float> residual, out;
};

// Rows [first_row, the last).
SharedNormResult run(const SharedNorm& norms, std::int64_t first_row, Context& ctx) {
  const FusedCase& a = norms.first;
  const FusedCase& b = norms.second;
  const std::int64_t rows = a.rows - first_row, outs = b.n - b.rest, parts = a.n / kNormPart;
  const auto nothing = [&](std::int64_t columns, bool bf16) {
    return Rows(ctx, std::vector<float>(rows * columns, NAN), rows, columns, kGap, bf16);
  };
  Rows x(ctx, {norms.data.x.begin() + first_row * a.k, norms.data.x.end()}, rows, a.k, kGap, true);
  Rows residual(ctx, {norms.data.before.begin() + first_row * a.n, norms.data.before.end()}, rows,
                a.n, kGap, false);
  Rows scaled = nothing(a.n, true), y = nothing(outs, true), rest = nothing(b.rest, false);
  const GpuArray<std::byte> w_a(ctx, norms.data.weight_bytes(DType::kBf16));
  const GpuArray<std::byte> w_b(ctx, norms.weights.weight_bytes(DType::kBf16));
  const GpuArray<float> norm(ctx, all(norms.norm));
  const GpuArray<float> squares(ctx, all(std::vector<float>(rows * parts + 1, NAN)));

  FusedLinearArgs first;
  first.x = x.matrix();
  first.w = {w_a.data(), DType::kBf16, {a.n, a.k}};
  first.y = residual.matrix();
  first.accumulate = true;
  first.half_norm = {norm.data(), scaled.matrix(), squares.data()};
  FusedLinearArgs second;
  second.x = scaled.matrix();
  second.squares = squares.data();
  second.w = {w_b.data(), DType::kBf16, {b.swiglu ? 2 * b.n : b.n, b.k}};
  second.y = y.matrix();
  if (b.rest > 0) second.rest = rest.matrix();
  second.swiglu = b.swiglu;
  first.compute = second.compute = Compute::kBf16;
  first.path = second.path = LinearPath::kGemm;
  SharedNormResult out;
  if (!takes_half_norm(first, ctx) || !takes_half_norm(second, ctx)) return out;
  out.taken = true;
  fused_linear(first, ctx);
  fused_linear(second, ctx);
  out.residual = residual.values();
  out.out = testing::side_by_side(y.values(), rest.values(), rows);
  scaled.values();  // looks at the gap
  std::vector<float> sums;
  squares.copy_to(sums);
  EXPECT_TRUE(std::isnan(sums.back())) << "written behind the sums of squares";
  return out;
}

bool has_tiles(Context& ctx) {
  return ctx.gpu()->info().compute_capability == 90;
}

TEST(CudaFusedLinear, TwoProductsShareANorm) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  const auto expect_right = [&](const SharedNorm& norms) {
    SCOPED_TRACE(norms.first.name() + ", then " + norms.second.name());
    const SharedNormResult got = run(norms, 0, gpu);
    ASSERT_EQ(got.taken, has_tiles(gpu));
    if (!got.taken) return;
    testing::expect_fused(got.residual, norms.data, norms.first);
    const Comparison c = compare(all(got.out), all(norms.naive), all(norms.truth), kBf16Rounding);
    EXPECT_TRUE(c.ok) << "off by " << c.error << ", allowed are " << c.bound;
  };
  for (const bool swiglu : {false, true}) {
    for (const std::int64_t rows : {1, 15, 16, 17, 63, 65, 127, 128, 129, 257}) {
      expect_right({rows, 72, 256, 264, swiglu});
    }
    for (const std::int64_t width : {512, 1280, 2304}) {  // parts of a row: 2, 5, 9
      expect_right({33, 328, width, 296, swiglu});
    }
    // Stages in which the residual comes to the L2: none, some, all.
    for (const std::int64_t k : {8, 1032, 2056}) expect_right({131, k, 256, 264, swiglu});
  }
  // More tiles than a card has multiprocessors, of the first product and of the second.
  expect_right({4400, 72, 1024, 8, true});
  expect_right({4400, 72, 256, 520, true});
}

TEST(CudaFusedLinear, ASharedNormsRowsDoNotDependOnTheOthers) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  if (!has_tiles(gpu)) GTEST_SKIP() << "no such kernel";
  for (const bool swiglu : {false, true}) {
    SharedNorm norms(300, 200, 512, 264, swiglu);
    const SharedNormResult together = run(norms, 0, gpu);
    for (const std::int64_t rows : {1, 17, 128, 129}) {
      const SharedNormResult got = run(norms, 300 - rows, gpu);
      EXPECT_TRUE(same_bits(
          got.residual, {together.residual.end() - rows * norms.first.n, together.residual.end()}));
      EXPECT_TRUE(
          same_bits(got.out, {together.out.end() - rows * norms.second.n, together.out.end()}));
    }
    // A row that is not finite leaves the others as they are.
    const std::int64_t bad = 130;
    norms.data.x[bad * 200 + 7] = NAN;
    const SharedNormResult spoiled = run(norms, 0, gpu);
    for (std::int64_t i = 0; i < std::ssize(spoiled.out); ++i) {
      if (i / norms.second.n == bad) {
        ASSERT_TRUE(std::isnan(spoiled.out[i])) << i;
      } else {
        ASSERT_TRUE(same_bits(&spoiled.out[i], &together.out[i], 1)) << i;
      }
    }
  }
}

TEST(CudaFusedLinear, SharesNoNormWhereNoKernelDoes) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const std::int64_t width : {8, 264, 384}) {
    EXPECT_FALSE(run(SharedNorm(5, 72, width, 264, true), 0, gpu).taken);
  }
  const GpuArray<float> numbers(gpu, all(std::vector<float>(8192)));
  FusedLinearArgs args;  // fp32
  args.x = TensorView<const float, 2>(numbers.data(), {1, 8});
  args.w = {reinterpret_cast<const std::byte*>(numbers.data()), DType::kF32, {256, 8}};
  args.y = TensorView<float, 2>(numbers.data() + 4096, {1, 256});
  args.accumulate = true;
  args.path = LinearPath::kGemm;
  args.half_norm = {numbers.data(),
                    TensorView<Bf16, 2>(reinterpret_cast<Bf16*>(numbers.data()), {1, 256}),
                    numbers.data()};
  EXPECT_FALSE(takes_half_norm(args, gpu));
  EXPECT_NE(error_of([&] { fused_linear(args, gpu); }).find("half a norm"), std::string::npos);
  args.accumulate = false;
  EXPECT_NE(error_of([&] { fused_linear(args, gpu); }).find("a sum onto y"), std::string::npos);
}

TEST(CudaFusedLinear, OtherTypesEqualTheOracle) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const DType weights : {DType::kF32, DType::kBf16}) {
    for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
      for (const std::int64_t rows : {1, 9, 33}) {
        FusedCase shape{rows, 40, 96};
        shape.weights = weights;
        shape.compute = compute;
        expect_all_kinds(shape, gpu);
      }
    }
  }
}

// Of up to 16 rows, of 17 to 256, and of tiles.
TEST(CudaFusedLinear, ARowsBitsDoNotDependOnTheOthers) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  const auto expect_same = [&](const FusedCase& shape, std::initializer_list<std::int64_t> fewer) {
    for (FusedCase fused : kinds(shape)) {
      const FusedData data(fused);
      const auto together = run(fused, data, 0, gpu);
      for (const std::int64_t rows : fewer) {
        fused.rows = rows;
        const std::int64_t first = shape.rows - rows;
        const std::vector<float> want(together.begin() + first * fused.n, together.end());
        EXPECT_TRUE(same_bits(run(fused, data, first, gpu), want)) << fused.name();
      }
    }
  };
  expect_same(streamed(16, 400, 1056), {1, 2, 3, 8, 9});
  expect_same(streamed(200, 400, 1056), {17, 64, 65, 128});
  expect_same(tiled(300, 200, 1056), {1, 17, 128, 129});
}

TEST(CudaFusedLinear, ARowsBitsDoNotDependOnTheBatch) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const bool swiglu : {false, true}) {
    FusedCase fused = streamed(64, 2048, 2056);
    fused.x_is_bf16 = true;
    fused.swiglu = fused.y_is_bf16 = swiglu;
    const FusedData data(fused);
    const auto together = run(fused, data, 0, gpu);
    for (const std::int64_t rows : {33, 50}) {
      fused.rows = rows;
      const std::vector<float> want(together.end() - rows * fused.n, together.end());
      EXPECT_TRUE(same_bits(run(fused, data, 64 - rows, gpu), want)) << fused.name();
    }
  }
}

TEST(CudaFusedLinear, ANormInTheKernelChangesNoBit) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const std::int64_t k : {32, 1056, 2048, 4096}) {
    FusedCase fused = streamed(1, 200, k);
    fused.norm = true;
    FusedData data(fused);
    const auto together = run(fused, data, 0, gpu);
    Rows x(gpu, data.x, 1, k, kGap, false), normed(gpu, data.x, 1, k, kGap, false);
    const GpuArray<float> weight(gpu, all(data.norm));
    RmsNormArgs norm;
    const Matrix from = x.matrix();
    norm.residual = {from.floats(), from.shape, from.stride};
    norm.weight = weight.data();
    norm.y = normed.matrix();
    rms_norm(norm, gpu);
    data.x = normed.values();
    fused.norm = false;
    EXPECT_TRUE(same_bits(run(fused, data, 0, gpu), together)) << k;
  }
}

// Kernels that begin before the ones they read from have ended read what those have written.
TEST(CudaFusedLinear, AChainOfProductsWaitsForEachOther) {
  SKIP_WITHOUT_GPU();
  Context gpu(on_gpu());
  for (const std::int64_t rows : {1, 5, 16, 40}) {
    const std::int64_t d = rows > 16 ? 2048 : 512, f = rows > 16 ? 2048 : 1024;
    const GpuArray<Bf16> up(gpu, all(FusedData(streamed(1, 2 * f, d)).w_bf16));
    const GpuArray<Bf16> down(gpu, all(FusedData(streamed(1, d, f)).w_bf16));
    const GpuArray<float> norm(gpu, all(std::vector<float>(d, 0.5f)));
    const auto start = random_floats(rows * d, 9);
    const auto chain = [&](bool one_by_one) {
      Rows residual(gpu, start, rows, d, 0, false),
          gated(gpu, random_floats(rows * f, 8), rows, f, 0, true);
      FusedLinearArgs first;
      first.x = residual.matrix();
      first.norm_weight = norm.data();
      first.w = {reinterpret_cast<const std::byte*>(up.data()), DType::kBf16, {2 * f, d}};
      first.y = gated.matrix();
      first.swiglu = true;
      first.compute = Compute::kBf16;
      FusedLinearArgs second;
      second.x = gated.matrix();
      second.w = {reinterpret_cast<const std::byte*>(down.data()), DType::kBf16, {d, f}};
      second.y = residual.matrix();
      second.accumulate = true;
      second.compute = Compute::kBf16;
      first.path = second.path = LinearPath::kSkinny;
      for (int i = 0; i < 50; ++i) {
        for (const FusedLinearArgs* args : {&first, &second}) {
          fused_linear(*args, gpu);
          if (one_by_one) gpu.gpu()->synchronize();
        }
      }
      return residual.values();
    };
    const auto want = chain(true);
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(same_bits(chain(false), want)) << rows;
  }
}

}  // namespace
}  // namespace mamba3
