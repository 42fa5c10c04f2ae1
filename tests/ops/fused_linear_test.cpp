#include "ops/linear/fused_linear.h"

#include "fused_linear_case.h"

namespace mamba3 {
namespace {

using testing::FusedCase;
using testing::FusedData;

std::vector<float> run(const FusedCase& fused, const FusedData& data, int threads) {
  Context ctx(with_threads(threads));
  PaddedRows x(data.x, fused.rows, fused.k, 3), y(data.before, fused.rows, fused.n, 2);
  FusedLinearArgs args;
  args.x = x.view;
  if (fused.norm) args.norm_weight = data.norm.data();
  const auto bytes = data.weight_bytes(fused.weights);
  args.w = {bytes.data(), fused.weights, {fused.swiglu ? 2 * fused.n : fused.n, fused.k}};
  args.y = y.view;
  args.swiglu = fused.swiglu;
  args.accumulate = fused.accumulate;
  args.compute = fused.compute;
  fused_linear(args, ctx);
  EXPECT_TRUE(y.gap_untouched());
  return y.values();
}

TEST(FusedLinear, EqualsTheOracle) {
  for (const std::int64_t rows : {1, 2, 17}) {
    for (const std::int64_t k : {1, 7, 64, 65}) {
      for (int kind = 0; kind < 16; ++kind) {
        FusedCase fused{rows, 19, k};
        fused.norm = (kind & 1) != 0;
        fused.swiglu = (kind & 6) == 2;
        fused.accumulate = (kind & 6) == 4;
        fused.weights = (kind & 8) != 0 ? DType::kBf16 : DType::kF32;
        fused.compute = (kind & 6) == 6 ? Compute::kBf16 : Compute::kF32;
        const FusedData data(fused);
        const auto got = run(fused, data, 1);
        testing::expect_fused(got, data, fused);
        EXPECT_TRUE(same_bits(got, run(fused, data, 3))) << fused.name();
      }
    }
  }
}

TEST(FusedLinear, PutsTheRestElsewhere) {
  Context ctx(with_threads(2));
  for (const bool norm : {false, true}) {
    FusedCase fused{5, 12, 9};
    fused.norm = norm;
    const FusedData data(fused);
    PaddedRows x(data.x, 5, 9, 1), y(5, 7, 2), rest(5, 5, 3);
    FusedLinearArgs args;
    args.x = x.view;
    if (norm) args.norm_weight = data.norm.data();
    args.w = {data.weight_bytes(DType::kF32).data(), DType::kF32, {12, 9}};
    args.y = y.view;
    args.rest = rest.view;
    fused_linear(args, ctx);
    EXPECT_TRUE(y.gap_untouched() && rest.gap_untouched());
    testing::expect_fused(testing::side_by_side(y.values(), rest.values(), 5), data, fused);
  }
}

TEST(FusedLinear, RefusesShapesThatDoNotFit) {
  Context ctx(with_threads(1));
  const std::vector<float> w(6 * 4);
  PaddedRows x(2, 4, 0), y(2, 3, 0);
  FusedLinearArgs args;
  args.x = x.view;
  args.y = y.view;
  args.w = {reinterpret_cast<const std::byte*>(w.data()), DType::kF32, {6, 4}};
  EXPECT_NE(error_of([&] { fused_linear(args, ctx); }).find("[rows, n]"), std::string::npos);
  args.swiglu = true;
  args.accumulate = true;
  EXPECT_NE(error_of([&] { fused_linear(args, ctx); }).find("expected neither"), std::string::npos);
  PaddedRows none(0, 3, 0), no_x(0, 4, 0);
  args.accumulate = false;
  args.x = no_x.view;
  args.y = none.view;
  fused_linear(args, ctx);
}

}  // namespace
}  // namespace mamba3
