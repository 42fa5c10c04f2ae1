// Few rows: the weights are read once, at memory speed.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "ops/linear/linear_paths.h"
#include "ops/linear/linear_skinny.h"
#include "ops/linear/processor.h"
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

// fp32 products of floats and weights widened to floats.
template <class Weights>
struct F32Products {
  using D = hn::ScalableTag<float>;
  using X = hn::Vec<D>;
  using W = hn::Vec<D>;
  using Sum = hn::Vec<D>;
  static constexpr std::int64_t kXBytes = 4;
  static constexpr std::int64_t kWBytes = Weights::kBytes;
#if HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_AVX2
  static constexpr int kMostRows = 2;  // of 16 registers
  static constexpr bool kFetchAhead = false;
#else
  static constexpr int kMostRows = 6;  // of 32
  static constexpr bool kFetchAhead = true;
#endif
  static std::int64_t step() {
    return static_cast<std::int64_t>(hn::Lanes(D()));
  }
  static HWY_INLINE Sum zero() {
    return hn::Zero(D());
  }
  static HWY_INLINE X load_x(const std::byte* x) {
    return KeepF32::load(D(), x);
  }
  static HWY_INLINE W load_w(const std::byte* w) {
    return Weights::load(D(), w);
  }
  static HWY_INLINE Sum multiply_add(X x, W w, Sum sum) {
    return hn::MulAdd(x, w, sum);
  }

  static HWY_INLINE void total4(Sum a, Sum b, Sum c, Sum d, float* out) {
#if HWY_TARGET == HWY_SCALAR
    out[0] = hn::GetLane(a);
    out[1] = hn::GetLane(b);
    out[2] = hn::GetLane(c);
    out[3] = hn::GetLane(d);
#else
    // Halves the lanes of two vectors into one, twice: every block of four lanes then holds a part
    // of each total.
    const D df;
    const hn::Repartition<double, D> df64;
    const Sum ab = hn::Add(hn::InterleaveLower(df, a, b), hn::InterleaveUpper(df, a, b));
    const Sum cd = hn::Add(hn::InterleaveLower(df, c, d), hn::InterleaveUpper(df, c, d));
    const auto ab64 = hn::BitCast(df64, ab);
    const auto cd64 = hn::BitCast(df64, cd);
    const Sum all = hn::Add(hn::BitCast(df, hn::InterleaveLower(df64, ab64, cd64)),
                            hn::BitCast(df, hn::InterleaveUpper(df64, ab64, cd64)));
    const hn::FixedTag<float, 4> block;
    alignas(HWY_MAX_BYTES) float lanes[HWY_MAX_BYTES / sizeof(float)];
    hn::Store(all, df, lanes);
    auto sum = hn::Load(block, lanes);
    for (std::size_t i = 4; i < hn::Lanes(df); i += 4) {
      sum = hn::Add(sum, hn::Load(block, lanes + i));
    }
    hn::StoreU(sum, block, out);
#endif
  }
};

#include "ops/linear/skinny_tiles.inc"

}  // namespace

void skinny_bf16_weights(const SkinnyArgs& args, std::int64_t begin, std::int64_t end) {
  skinny_outputs<F32Products<WidenBf16>>(args, begin, end);
}
void skinny_f32_weights(const SkinnyArgs& args, std::int64_t begin, std::int64_t end) {
  skinny_outputs<F32Products<KeepF32>>(args, begin, end);
}
void skinny_rounded_f32_weights(const SkinnyArgs& args, std::int64_t begin, std::int64_t end) {
  skinny_outputs<F32Products<RoundF32>>(args, begin, end);
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(skinny_bf16_weights);
HWY_EXPORT(skinny_f32_weights);
HWY_EXPORT(skinny_rounded_f32_weights);

SkinnyKernel choose_kernel(const LinearArgs& args, [[maybe_unused]] bool bf16_products) {
  const bool bf16_weights = args.w.dtype == DType::kBf16;
#if HWY_ARCH_X86
  if (bf16_products) {
    return bf16_weights ? skinny_bf16_products : skinny_bf16_products_f32_weights;
  }
#endif
  if (bf16_weights) return HWY_DYNAMIC_DISPATCH(skinny_bf16_weights);
  if (args.compute == Compute::kF32) return HWY_DYNAMIC_DISPATCH(skinny_f32_weights);
  return HWY_DYNAMIC_DISPATCH(skinny_rounded_f32_weights);
}

// Outputs are shared out in rounds, each of one task a thread and half as long as the round before:
// long tasks keep the streams of memory long, short ones at the end let all threads finish
// together. Tasks are cut at multiples of 8 outputs, which suits every kernel.
class Rounds {
 public:
  Rounds(std::int64_t n, std::int64_t bytes, std::int64_t threads)
      : n_(n), units_((n + kUnit - 1) / kUnit), threads_(threads) {
    while (count_ < kMostRounds && bytes / threads >> count_ >= kShortestBytes) ++count_;
  }
  std::int64_t tasks() const { return count_ * threads_; }
  std::int64_t begin(std::int64_t task) const {
    const std::int64_t round = task / threads_;
    const std::int64_t from = round_begin(round);
    const std::int64_t units = round_begin(round + 1) - from;
    return std::min(n_, kUnit * (from + units * (task % threads_) / threads_));
  }

 private:
  static constexpr std::int64_t kUnit = 8;
  static constexpr std::int64_t kMostRounds = 5;
  static constexpr std::int64_t kShortestBytes = 32 << 10;  // of a task

  std::int64_t round_begin(std::int64_t round) const {
    return round >= count_ ? units_ : units_ - (units_ >> round);
  }

  std::int64_t n_;
  std::int64_t units_;
  std::int64_t threads_;
  std::int64_t count_ = 1;
};

constexpr std::int64_t kFewElements = 1 << 14;  // x so small is rounded in 2 us: less than a task

// Rows a cache line longer than needed: rows of a power of two would displace each other from the
// cache.
std::int64_t rounded_stride(std::int64_t k) {
  return (k + 31) / 32 * 32 + 32;
}

template <class Number>
void round_x(const LinearArgs& args, Number* out, Context& ctx) {
  const std::int64_t k = args.x.shape[1];
  const std::int64_t stride = rounded_stride(k);
  const auto round_row = [&](std::int64_t row, int) {
    const float* from = args.x.data + row * args.x.stride[0];
    if constexpr (std::is_same_v<Number, Bf16>) {
      round_to_bf16(from, k, out + row * stride);
    } else {
      round_through_bf16(from, k, out + row * stride);
    }
  };
  if (args.x.elements() <= kFewElements) {
    for (std::int64_t row = 0; row < args.x.shape[0]; ++row) round_row(row, 0);
  } else {
    ctx.pool().run(args.x.shape[0], round_row);
  }
}

template <class Number>
void use_rounded_x(const LinearArgs& args, ArenaScope& scope, SkinnyArgs& skinny, Context& ctx) {
  const std::int64_t stride = rounded_stride(skinny.k);
  auto* rounded = scope.allocate<Number>(skinny.rows * stride);
  round_x(args, rounded, ctx);
  skinny.x = reinterpret_cast<const std::byte*>(rounded);
  skinny.x_stride_bytes = stride * static_cast<std::int64_t>(sizeof(Number));
}

}  // namespace

std::size_t linear_skinny_workspace_bytes(const LinearArgs& args, const Context&) {
  if (args.compute == Compute::kF32) return 0;
  const std::int64_t number_bytes = multiplies_bf16() ? 2 : 4;
  return static_cast<std::size_t>(args.x.shape[0] * rounded_stride(args.x.shape[1]) *
                                  number_bytes) +
         Arena::kAlignBytes;
}

void linear_skinny(const LinearArgs& args, Context& ctx) {
  ArenaScope scope(ctx.workspace());
  const bool bf16_products = args.compute == Compute::kBf16 && multiplies_bf16();
  SkinnyArgs skinny;
  skinny.rows = args.x.shape[0];
  skinny.k = args.x.shape[1];
  skinny.w = args.w.data;
  skinny.y = args.y.data;
  skinny.y_stride = args.y.stride[0];
  if (bf16_products) {
    use_rounded_x<Bf16>(args, scope, skinny, ctx);
  } else if (args.compute == Compute::kBf16) {
    use_rounded_x<float>(args, scope, skinny, ctx);
  } else {
    skinny.x = reinterpret_cast<const std::byte*>(args.x.data);
    skinny.x_stride_bytes = args.x.stride[0] * static_cast<std::int64_t>(sizeof(float));
  }
  const SkinnyKernel kernel = choose_kernel(args, bf16_products);
  const Rounds rounds(args.w.shape[0], args.w.bytes(), ctx.threads());
  ctx.pool().run(rounds.tasks(), [&](std::int64_t task, int) {
    kernel(skinny, rounds.begin(task), rounds.begin(task + 1));
  });
}

}  // namespace mamba3
#endif  // HWY_ONCE
