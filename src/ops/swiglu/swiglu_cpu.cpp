#include "ops/swiglu/swiglu_cpu.h"

#include <algorithm>
#include <cstring>

#include "core/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/swiglu/swiglu_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/simd/demote-inl.h"
#include "ops/swiglu/gated-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Inside in double, each result is rounded once.
void swiglu_rows(const SwigluArgs& args, std::int64_t begin, std::int64_t end) {
  const hn::ScalableTag<double> df64;
  const hn::Rebind<float, decltype(df64)> df32;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df64));
  const std::int64_t f = args.y.shape[1];
  const auto step = [&](const float* up, const float* gate, float* y) {
    const auto u = hn::PromoteTo(df64, hn::LoadU(df32, up));
    const auto g = hn::PromoteTo(df64, hn::LoadU(df32, gate));
    hn::StoreU(demote(df32, gated(df64, u, g)), df32, y);
  };
  for (std::int64_t row = begin; row < end; ++row) {
    const float* up = args.h.row(row);
    const float* gate = up + f;
    float* y = args.y.row(row);
    std::int64_t i = 0;
    for (; i + lanes <= f; i += lanes) step(up + i, gate + i, y + i);
    if (i == f) continue;
    // The same arithmetic for the rest, so that a value does not depend on its column.
    float tail[3][HWY_MAX_BYTES / sizeof(double)] = {};
    const auto tail_bytes = static_cast<std::size_t>(f - i) * sizeof(float);
    std::memcpy(tail[0], up + i, tail_bytes);
    std::memcpy(tail[1], gate + i, tail_bytes);
    step(tail[0], tail[1], tail[2]);
    std::memcpy(y + i, tail[2], tail_bytes);
  }
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

constexpr std::int64_t kTaskElements = 8192;  // about 5 us of work

HWY_EXPORT(swiglu_rows);

}  // namespace

void swiglu_cpu(const SwigluArgs& args, Context& ctx) {
  const std::int64_t rows = args.y.shape[0];
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, kTaskElements / args.y.shape[1]);
  const auto kernel = HWY_DYNAMIC_DISPATCH(swiglu_rows);
  ctx.pool().run((rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t task, int) {
    const std::int64_t begin = task * rows_per_task;
    kernel(args, begin, std::min(rows, begin + rows_per_task));
  });
}

}  // namespace mamba3
#endif  // HWY_ONCE
