#include "ops/rms_norm/rms_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "core/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rms_norm/rms_norm_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Adds hidden (when given) into `to` and returns the sum of squares. The order of the sum depends
// on d alone.
double add_and_square(const float* residual, const float* hidden, float* to, std::int64_t d) {
  const hn::ScalableTag<double> df64;
  const hn::Rebind<float, decltype(df64)> df32;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df64));
  const auto step = [&](std::int64_t i) {
    auto r = hn::LoadU(df32, residual + i);
    if (hidden != nullptr) {
      r = hn::Add(r, hn::LoadU(df32, hidden + i));
      hn::StoreU(r, df32, to + i);
    }
    return hn::PromoteTo(df64, r);
  };
  auto sum0 = hn::Zero(df64);
  auto sum1 = hn::Zero(df64);
  std::int64_t i = 0;
  for (; i + 2 * lanes <= d; i += 2 * lanes) {
    const auto a = step(i);
    const auto b = step(i + lanes);
    sum0 = hn::MulAdd(a, a, sum0);
    sum1 = hn::MulAdd(b, b, sum1);
  }
  double sum = hn::GetLane(hn::SumOfLanes(df64, hn::Add(sum0, sum1)));
  for (; i < d; ++i) {
    float r = residual[i];
    if (hidden != nullptr) to[i] = r += hidden[i];
    sum += static_cast<double>(r) * r;
  }
  return sum;
}

void scale(const float* residual, const float* weight, float rstd, float* y, std::int64_t d) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  const auto factor = hn::Set(df, rstd);
  std::int64_t i = 0;
  for (; i + lanes <= d; i += lanes) {
    const auto r = hn::Mul(hn::LoadU(df, residual + i), factor);
    hn::StoreU(hn::Mul(r, hn::LoadU(df, weight + i)), df, y + i);
  }
  for (; i < d; ++i) y[i] = residual[i] * rstd * weight[i];
}

void rms_norm_rows(const RmsNormArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t d = args.residual.shape[1];
  for (std::int64_t row = begin; row < end; ++row) {
    float* residual = args.residual.data + row * args.residual.stride[0];
    const float* hidden =
        args.hidden.data == nullptr ? nullptr : args.hidden.data + row * args.hidden.stride[0];
    float* to = args.sum.data == nullptr ? residual : args.sum.data + row * args.sum.stride[0];
    const double sum = add_and_square(residual, hidden, to, d);
    const double rstd = 1.0 / std::sqrt(sum / static_cast<double>(d) + args.eps);
    scale(to, args.weight, static_cast<float>(rstd), args.y.row(row), d);
  }
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

constexpr std::int64_t kTaskElements = 16384;  // about 3 us of work

HWY_EXPORT(rms_norm_rows);

}  // namespace

void rms_norm_cpu(const RmsNormArgs& args, Context& ctx) {
  const std::int64_t rows = args.residual.shape[0];
  const std::int64_t rows_per_task =
      std::max<std::int64_t>(1, kTaskElements / args.residual.shape[1]);
  const auto kernel = HWY_DYNAMIC_DISPATCH(rms_norm_rows);
  ctx.pool().run((rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t task, int) {
    const std::int64_t begin = task * rows_per_task;
    kernel(args, begin, std::min(rows, begin + rows_per_task));
  });
}

}  // namespace mamba3
#endif  // HWY_ONCE
