#include "ops/swiglu_backward/swiglu_backward_cpu.h"

#include <algorithm>
#include <cstring>

#include "core/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/swiglu_backward/swiglu_backward_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/simd/demote-inl.h"
#include "ops/simd/exp-inl.h"
#include "ops/swiglu/gated-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One vector of each. grad_up and grad_gate may lie where `up` and `gate` do; y may be null.
HWY_INLINE void swiglu_backward_step(const float* up, const float* gate, const float* grad_y,
                                     float* grad_up, float* grad_gate, float* y) {
  const hn::ScalableTag<double> df64;
  const hn::Rebind<float, decltype(df64)> df32;
  const auto one = hn::Set(df64, 1.0);
  const auto u = hn::PromoteTo(df64, hn::LoadU(df32, up));
  const auto g = hn::PromoteTo(df64, hn::LoadU(df32, gate));
  const auto grad = hn::PromoteTo(df64, hn::LoadU(df32, grad_y));
  const auto s = hn::Div(one, hn::Add(one, exp_f64(df64, hn::Neg(g))));
  const auto silu = hn::Mul(g, s);
  // s + gate s (1 - s). e^-gate (1 - s) would be infinity times 0 at gate = -1000.
  const auto slope = hn::MulAdd(silu, hn::Sub(one, s), s);
  hn::StoreU(demote(df32, hn::Mul(grad, silu)), df32, grad_up);
  hn::StoreU(demote(df32, hn::Mul(hn::Mul(grad, u), slope)), df32, grad_gate);
  if (y != nullptr) hn::StoreU(demote(df32, gated(df64, u, g)), df32, y);
}

void swiglu_backward_rows(const SwigluBackwardArgs& args, std::int64_t begin, std::int64_t end) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<double>()));
  const std::int64_t f = args.grad_y.shape[1];
  for (std::int64_t row = begin; row < end; ++row) {
    const float* up = args.h.row(row);
    const float* grad_y = args.grad_y.row(row);
    float* grad_up = args.grad_h.row(row);
    float* y = args.y.data == nullptr ? nullptr : args.y.row(row);
    std::int64_t i = 0;
    for (; i + lanes <= f; i += lanes) {
      swiglu_backward_step(up + i, up + f + i, grad_y + i, grad_up + i, grad_up + f + i,
                           y == nullptr ? nullptr : y + i);
    }
    if (i == f) continue;
    // The same arithmetic for the rest, so that a value does not depend on its column.
    float tail[6][HWY_MAX_BYTES / sizeof(double)] = {};
    const auto tail_bytes = static_cast<std::size_t>(f - i) * sizeof(float);
    std::memcpy(tail[0], up + i, tail_bytes);
    std::memcpy(tail[1], up + f + i, tail_bytes);
    std::memcpy(tail[2], grad_y + i, tail_bytes);
    swiglu_backward_step(tail[0], tail[1], tail[2], tail[3], tail[4], tail[5]);
    std::memcpy(grad_up + i, tail[3], tail_bytes);
    std::memcpy(grad_up + f + i, tail[4], tail_bytes);
    if (y != nullptr) std::memcpy(y + i, tail[5], tail_bytes);
  }
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

constexpr std::int64_t kTaskElements = 8192;  // some 10 us of work

HWY_EXPORT(swiglu_backward_rows);

}  // namespace

void swiglu_backward_cpu(const SwigluBackwardArgs& args, Context& ctx) {
  const std::int64_t rows = args.grad_y.shape[0];
  const std::int64_t rows_per_task =
      std::max<std::int64_t>(1, kTaskElements / args.grad_y.shape[1]);
  const auto kernel = HWY_DYNAMIC_DISPATCH(swiglu_backward_rows);
  ctx.pool().run((rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t task, int) {
    const std::int64_t begin = task * rows_per_task;
    kernel(args, begin, std::min(rows, begin + rows_per_task));
  });
}

}  // namespace mamba3
#endif  // HWY_ONCE
