#include "ops/sampling/softmax_sums.h"

#include <cmath>
#include <limits>

#include "core/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/sampling/softmax_sums.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/simd/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The largest, or NaN when one is NaN.
float maximum(const float* logits, std::int64_t count) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  auto best = hn::Set(df, -std::numeric_limits<float>::infinity());
  auto nan = hn::IsNaN(hn::Zero(df));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(df, logits + i);
    nan = hn::Or(nan, hn::IsNaN(v));
    best = hn::Max(best, v);
  }
  float out = hn::GetLane(hn::MaxOfLanes(df, best));
  bool found_nan = !hn::AllFalse(df, nan);
  for (; i < count; ++i) {
    found_nan = found_nan || std::isnan(logits[i]);
    if (logits[i] > out) out = logits[i];
  }
  return found_nan ? std::numeric_limits<float>::quiet_NaN() : out;
}

double exp_sum(const float* logits, std::int64_t count, float largest, double scale) {
  const hn::ScalableTag<double> df64;
  const hn::Rebind<float, decltype(df64)> df32;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df64));
  const auto top = hn::Set(df64, static_cast<double>(largest));
  const auto factor = hn::Set(df64, scale);
  auto sum = hn::Zero(df64);
  const auto add = [&](const float* p) {
    const auto logit = hn::PromoteTo(df64, hn::LoadU(df32, p));
    sum = hn::Add(sum, exp_f64(df64, hn::Mul(hn::Sub(logit, top), factor)));
  };
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) add(logits + i);
  if (i < count) {
    float tail[HWY_MAX_BYTES / sizeof(double)];
    for (float& value : tail) value = -std::numeric_limits<float>::infinity();
    for (std::int64_t j = i; j < count; ++j) tail[j - i] = logits[j];
    add(tail);
  }
  return hn::GetLane(hn::SumOfLanes(df64, sum));
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(maximum);
HWY_EXPORT(exp_sum);

}  // namespace

LargestLogit largest_logit(std::span<const float> logits) {
  const auto count = static_cast<std::int64_t>(logits.size());
  check_input(count > 0 && count <= std::numeric_limits<std::int32_t>::max(),
              "sampling: there are ", count, " logits; expected 1 to 2147483647");
  const float largest = HWY_DYNAMIC_DISPATCH(maximum)(logits.data(), count);
  std::int32_t id = 0;
  if (std::isfinite(largest)) {
    while (logits[id] != largest) ++id;
    return {id, largest};
  }
  if (largest < 0) {
    fail(ErrorCode::kBadInput, "all ", count,
         " logits are -infinity; expected at least one token that is possible; check the model's "
         "weights with inspect");
  }
  while (!std::isnan(logits[id]) && logits[id] != largest) ++id;
  fail(ErrorCode::kBadInput, "the logit of token ", id, " is ", logits[id],
       "; expected finite numbers or -infinity; check the model's weights with inspect");
}

double sum_of_exp(std::span<const float> logits, float largest, double scale) {
  return HWY_DYNAMIC_DISPATCH(exp_sum)(logits.data(), static_cast<std::int64_t>(logits.size()),
                                       largest, scale);
}

}  // namespace mamba3
#endif  // HWY_ONCE
