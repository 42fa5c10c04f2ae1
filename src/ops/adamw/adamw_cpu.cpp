#include "ops/adamw/adamw_cpu.h"

#include <algorithm>
#include <cstring>

#include "core/thread_pool.h"
#include "ops/adamw/adamw_factors.h"
#include "ops/linear/round_bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamw/adamw_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE void adamw_step(const AdamwFactors& by, const float* grad, float* weights, float* first,
                           float* second) {
  const hn::ScalableTag<float> df;
  const auto g = hn::Mul(hn::LoadU(df, grad), hn::Set(df, by.grad));
  const auto m_before = hn::LoadU(df, first);
  const auto m = hn::MulAdd(hn::Set(df, by.take1), hn::Sub(g, m_before), m_before);
  const auto s = hn::MulAdd(hn::Set(df, by.keep2), hn::LoadU(df, second),
                            hn::Mul(hn::Set(df, by.take2), hn::Mul(g, g)));
  hn::StoreU(m, df, first);
  hn::StoreU(s, df, second);
  const auto divisor = hn::MulAdd(hn::Sqrt(s), hn::Set(df, by.root), hn::Set(df, by.eps));
  const auto update = hn::Div(hn::Mul(hn::Set(df, by.rate), m), divisor);
  const auto w = hn::Mul(hn::LoadU(df, weights), hn::Set(df, by.keep));
  hn::StoreU(hn::Sub(w, update), df, weights);
}

void adamw_elements(const AdamwArgs& args, std::int64_t begin, std::int64_t end) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  const AdamwFactors by(args);
  std::int64_t i = begin;
  for (; i + lanes <= end; i += lanes) {
    adamw_step(by, args.grad + i, args.weights + i, args.first + i, args.second + i);
  }
  if (i == end) return;
  // The same arithmetic for the rest, so that an element does not depend on its place.
  float tail[4][HWY_MAX_BYTES / sizeof(float)] = {};
  const auto tail_bytes = static_cast<std::size_t>(end - i) * sizeof(float);
  std::memcpy(tail[0], args.grad + i, tail_bytes);
  std::memcpy(tail[1], args.weights + i, tail_bytes);
  std::memcpy(tail[2], args.first + i, tail_bytes);
  std::memcpy(tail[3], args.second + i, tail_bytes);
  adamw_step(by, tail[0], tail[1], tail[2], tail[3]);
  std::memcpy(args.weights + i, tail[1], tail_bytes);
  std::memcpy(args.first + i, tail[2], tail_bytes);
  std::memcpy(args.second + i, tail[3], tail_bytes);
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

constexpr std::int64_t kTaskElements = 16384;  // 256 KiB of each of four arrays

HWY_EXPORT(adamw_elements);

}  // namespace

void adamw_cpu(const AdamwArgs& args, Context& ctx) {
  const auto kernel = HWY_DYNAMIC_DISPATCH(adamw_elements);
  ctx.pool().run((args.count + kTaskElements - 1) / kTaskElements, [&](std::int64_t task, int) {
    const std::int64_t begin = task * kTaskElements;
    const std::int64_t end = std::min(args.count, begin + kTaskElements);
    kernel(args, begin, end);
    if (args.rounded == nullptr) return;
    round_to_bf16(args.weights + begin, end - begin, args.rounded + begin);
  });
}

}  // namespace mamba3
#endif  // HWY_ONCE
