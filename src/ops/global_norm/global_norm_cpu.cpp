#include "ops/global_norm/global_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "core/arena.h"
#include "core/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/global_norm/global_norm_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The order of the sum depends on `count` alone.
double sum_squares(const float* values, std::int64_t count) {
  const hn::ScalableTag<double> df64;
  const hn::Rebind<float, decltype(df64)> df32;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df64));
  auto sum0 = hn::Zero(df64);
  auto sum1 = hn::Zero(df64);
  std::int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const auto a = hn::PromoteTo(df64, hn::LoadU(df32, values + i));
    const auto b = hn::PromoteTo(df64, hn::LoadU(df32, values + i + lanes));
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
  }
  double sum = hn::GetLane(hn::SumOfLanes(df64, hn::Add(sum0, sum1)));
  for (; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  return sum;
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

constexpr std::int64_t kPieceElements = std::int64_t{1} << 16;

HWY_EXPORT(sum_squares);

double squares_of(std::span<const float> values, Context& ctx) {
  const auto kernel = HWY_DYNAMIC_DISPATCH(sum_squares);
  const auto count = static_cast<std::int64_t>(values.size());
  if (count <= kPieceElements) return kernel(values.data(), count);
  const std::int64_t pieces = (count + kPieceElements - 1) / kPieceElements;
  ArenaScope scope(ctx.workspace());
  auto* sums = scope.allocate<double>(pieces);
  ctx.pool().run(pieces, [&](std::int64_t piece, int) {
    const std::int64_t begin = piece * kPieceElements;
    sums[piece] = kernel(values.data() + begin, std::min(kPieceElements, count - begin));
  });
  double total = 0;
  for (std::int64_t piece = 0; piece < pieces; ++piece) total += sums[piece];
  return total;
}

}  // namespace

void global_norm_cpu(const GlobalNormArgs& args, Context& ctx) {
  double total = 0;
  for (const std::span<const float> values : args.tensors) total += squares_of(values, ctx);
  *args.norm = std::sqrt(total);
}

}  // namespace mamba3
#endif  // HWY_ONCE
