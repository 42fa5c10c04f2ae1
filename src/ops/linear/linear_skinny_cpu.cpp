// Few rows: every weight is read once, and each sum of a row and an output lives in a vector of its
// own, so its bits cannot depend on what is computed beside it.
#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "ops/linear/linear_paths.h"
#include "ops/linear/linear_skinny.h"
#include "ops/linear/round_bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/linear_skinny_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/linear/load_weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Sums of kRows rows and kOuts outputs.
template <class Weights, int kRows, int kOuts>
HWY_INLINE void dot_tile(const SkinnyArgs& args, std::int64_t row, std::int64_t out) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  const std::int64_t w_stride = args.k * Weights::kBytes;
  const float* x = args.x + row * args.x_stride;
  const std::byte* w = args.w + out * w_stride;
  hn::Vec<decltype(df)> sums[kRows][kOuts];
  for (auto& row_sums : sums) {
    for (auto& sum : row_sums) sum = hn::Zero(df);
  }
  std::int64_t i = 0;
  for (; i + lanes <= args.k; i += lanes) {
    hn::Vec<decltype(df)> weights[kOuts];
    for (int o = 0; o < kOuts; ++o) {
      weights[o] = Weights::load(df, w + o * w_stride + i * Weights::kBytes);
    }
    for (int r = 0; r < kRows; ++r) {
      const auto value = hn::LoadU(df, x + r * args.x_stride + i);
      for (int o = 0; o < kOuts; ++o) sums[r][o] = hn::MulAdd(value, weights[o], sums[r][o]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int o = 0; o < kOuts; ++o) {
      float sum = hn::GetLane(hn::SumOfLanes(df, sums[r][o]));
      for (std::int64_t j = i; j < args.k; ++j) {
        const float weight = Weights::load_one(w + o * w_stride + j * Weights::kBytes);
        sum += x[r * args.x_stride + j] * weight;
      }
      args.y[(row + r) * args.y_stride + out + o] = sum;
    }
  }
}

template <class Weights, int kOuts>
HWY_INLINE void dot_rows(const SkinnyArgs& args, std::int64_t out) {
  std::int64_t row = 0;
  for (; row + 4 <= args.rows; row += 4) dot_tile<Weights, 4, kOuts>(args, row, out);
  switch (args.rows - row) {
    case 3:
      return dot_tile<Weights, 3, kOuts>(args, row, out);
    case 2:
      return dot_tile<Weights, 2, kOuts>(args, row, out);
    case 1:
      return dot_tile<Weights, 1, kOuts>(args, row, out);
    default:
      return;
  }
}

template <class Weights>
void skinny_range(const SkinnyArgs& args, std::int64_t begin, std::int64_t end) {
  std::int64_t out = begin;
  for (; out + 4 <= end; out += 4) dot_rows<Weights, 4>(args, out);
  for (; out < end; ++out) dot_rows<Weights, 1>(args, out);
}

}  // namespace

void skinny_bf16_weights(const SkinnyArgs& args, std::int64_t begin, std::int64_t end) {
  skinny_range<WidenBf16>(args, begin, end);
}
void skinny_f32_weights(const SkinnyArgs& args, std::int64_t begin, std::int64_t end) {
  skinny_range<KeepF32>(args, begin, end);
}
void skinny_rounded_f32_weights(const SkinnyArgs& args, std::int64_t begin, std::int64_t end) {
  skinny_range<RoundF32>(args, begin, end);
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

constexpr std::int64_t kTaskBytes = 1 << 17;  // of weights: about 5 us of work for one row

HWY_EXPORT(skinny_bf16_weights);
HWY_EXPORT(skinny_f32_weights);
HWY_EXPORT(skinny_rounded_f32_weights);

auto choose_kernel(const LinearArgs& args) {
  if (args.w.dtype == DType::kBf16) return HWY_DYNAMIC_DISPATCH(skinny_bf16_weights);
  if (args.compute == Compute::kF32) return HWY_DYNAMIC_DISPATCH(skinny_f32_weights);
  return HWY_DYNAMIC_DISPATCH(skinny_rounded_f32_weights);
}

}  // namespace

std::size_t linear_skinny_workspace_bytes(const LinearArgs& args, const Context&) {
  if (args.compute == Compute::kF32) return 0;
  return static_cast<std::size_t>(args.x.elements()) * sizeof(float) + Arena::kAlignBytes;
}

void linear_skinny(const LinearArgs& args, Context& ctx) {
  ArenaScope scope(ctx.workspace());
  SkinnyArgs skinny{args.x.data,      args.x.stride[0], args.w.data,    args.y.data,
                    args.y.stride[0], args.x.shape[0],  args.x.shape[1]};
  if (args.compute == Compute::kBf16) {
    auto* rounded = scope.allocate<float>(args.x.elements());
    for (std::int64_t row = 0; row < skinny.rows; ++row) {
      round_through_bf16(args.x.data + row * args.x.stride[0], skinny.k, rounded + row * skinny.k);
    }
    skinny.x = rounded;
    skinny.x_stride = skinny.k;
  }
  const std::int64_t n = args.w.shape[0];
  const std::int64_t row_bytes = skinny.k * dtype_bytes(args.w.dtype);
  const std::int64_t outs = std::max<std::int64_t>(4, kTaskBytes / row_bytes / 4 * 4);
  const auto kernel = choose_kernel(args);
  ctx.pool().run((n + outs - 1) / outs, [&](std::int64_t task, int) {
    kernel(skinny, task * outs, std::min(n, (task + 1) * outs));
  });
}

}  // namespace mamba3
#endif  // HWY_ONCE
