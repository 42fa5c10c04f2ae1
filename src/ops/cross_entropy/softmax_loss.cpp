#include "ops/cross_entropy/softmax_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cross_entropy/softmax_loss.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/simd/demote-inl.h"
#include "ops/simd/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// NaN when there is one among the logits.
float largest_logit(const float* logits, std::int64_t v) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  auto largest = hn::Set(df, -std::numeric_limits<float>::infinity());
  auto nan = hn::Zero(df);  // all bits of the NaNs
  std::int64_t i = 0;
  for (; i + lanes <= v; i += lanes) {
    const auto l = hn::LoadU(df, logits + i);
    largest = hn::Max(largest, l);
    nan = hn::Or(nan, hn::IfThenElseZero(hn::IsNaN(l), l));
  }
  float all = hn::GetLane(hn::MaxOfLanes(df, largest));
  bool any_nan = !hn::AllFalse(df, hn::IsNaN(nan));
  for (; i < v; ++i) {
    all = std::max(all, logits[i]);
    any_nan = any_nan || std::isnan(logits[i]);
  }
  return any_nan ? std::numeric_limits<float>::quiet_NaN() : all;
}

// The sum of e^(logit - largest), whose order depends on v alone; with `keep` the terms replace the
// logits.
double sum_exponentials(float* logits, std::int64_t v, float largest, bool keep) {
  const hn::ScalableTag<double> df64;
  const hn::Rebind<float, decltype(df64)> df32;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df64));
  const auto shift = hn::Set(df64, static_cast<double>(largest));
  auto sum0 = hn::Zero(df64);
  auto sum1 = hn::Zero(df64);
  const auto step = [&](std::int64_t i) {
    const auto l = hn::PromoteTo(df64, hn::LoadU(df32, logits + i));
    const auto e = exp_f64(df64, hn::Sub(l, shift));
    if (keep) hn::StoreU(demote(df32, e), df32, logits + i);
    return e;
  };
  std::int64_t i = 0;
  for (; i + 2 * lanes <= v; i += 2 * lanes) {
    sum0 = hn::Add(sum0, step(i));
    sum1 = hn::Add(sum1, step(i + lanes));
  }
  double sum = hn::GetLane(hn::SumOfLanes(df64, hn::Add(sum0, sum1)));
  for (; i < v; ++i) {
    const double e = std::exp(static_cast<double>(logits[i]) - static_cast<double>(largest));
    if (keep) logits[i] = static_cast<float>(e);
    sum += e;
  }
  return sum;
}

void scale_row(float* values, std::int64_t count, float factor) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  const auto by = hn::Set(df, factor);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::Mul(hn::LoadU(df, values + i), by), df, values + i);
  }
  for (; i < count; ++i) values[i] *= factor;
}

SoftmaxLoss row_loss(const SoftmaxLossArgs& args) {
  const float largest = largest_logit(args.logits, args.v);
  const float of_target = args.logits[args.target];
  if (!std::isfinite(largest)) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    if (args.gradient) std::fill_n(args.logits, args.v, static_cast<float>(kNan));
    return {kNan, kNan, false};
  }
  const double sum = sum_exponentials(args.logits, args.v, largest, args.gradient);
  const double below = static_cast<double>(largest) - static_cast<double>(of_target);
  SoftmaxLoss out;
  out.z = static_cast<double>(largest) + std::log(sum);
  out.loss = std::log(sum) + below;
  out.correct = of_target == largest;
  if (!args.gradient) return out;
  const double factor = args.grad_scale * (1 + 2 * args.z_weight * out.z) / sum;
  scale_row(args.logits, args.v, static_cast<float>(factor));
  // In double: near 1 a probability in fp32 has lost what it lacks of 1.
  args.logits[args.target] = static_cast<float>(factor * std::exp(-below) - args.grad_scale);
  return out;
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(row_loss);

}  // namespace

SoftmaxLoss softmax_loss(const SoftmaxLossArgs& args) {
  return HWY_DYNAMIC_DISPATCH(row_loss)(args);
}

}  // namespace mamba3
#endif  // HWY_ONCE
