#include "ops/linear/pack_weights.h"

#include <algorithm>
#include <cstring>

#include "ops/linear/gemm_f32.h"
#include "ops/linear/round_bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/pack_weights.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/linear/load_weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Columns [begin, end) of rows [0, outs), one number at a time.
template <class Weights>
void transpose_rest(const PackArgs& args, std::int64_t first_out, std::int64_t begin,
                    std::int64_t end, float* out, std::int64_t stride) {
  for (std::int64_t o = first_out; o < args.outs; ++o) {
    const std::byte* row = args.w + o * args.stride * Weights::kBytes;
    for (std::int64_t i = begin; i < end; ++i) {
      out[i * stride + o] = Weights::load_one(row + i * Weights::kBytes);
    }
  }
}

template <class Weights>
void transpose(const PackArgs& args, float* out, std::int64_t stride) {
#if HWY_TARGET == HWY_SCALAR
  transpose_rest<Weights>(args, 0, 0, args.k, out, stride);
#else
  const hn::FixedTag<float, 4> df;
  const hn::FixedTag<double, 2> df64;
  const std::int64_t row_bytes = args.stride * Weights::kBytes;
  const std::int64_t whole_k = args.k / 16 * 16;
  const std::int64_t whole_outs = args.outs / 4 * 4;
  // Whole lines from each row, and lines of `out` that stay in the first-level cache until they are
  // full.
  constexpr std::int64_t kBlock = 96;
  for (std::int64_t block = 0; block < whole_k; block += kBlock) {
    const std::int64_t end = std::min(whole_k, block + kBlock);
    for (std::int64_t o = 0; o < whole_outs; o += 4) {
      const std::byte* w = args.w + o * row_bytes;
      for (std::int64_t i = block; i < end; i += 4) {
        const std::byte* at = w + i * Weights::kBytes;
        const auto r0 = Weights::load(df, at);
        const auto r1 = Weights::load(df, at + row_bytes);
        const auto r2 = Weights::load(df, at + 2 * row_bytes);
        const auto r3 = Weights::load(df, at + 3 * row_bytes);
        const auto a = hn::BitCast(df64, hn::InterleaveLower(df, r0, r1));
        const auto b = hn::BitCast(df64, hn::InterleaveLower(df, r2, r3));
        const auto c = hn::BitCast(df64, hn::InterleaveUpper(df, r0, r1));
        const auto d = hn::BitCast(df64, hn::InterleaveUpper(df, r2, r3));
        float* to = out + i * stride + o;
        hn::StoreU(hn::BitCast(df, hn::InterleaveLower(df64, a, b)), df, to);
        hn::StoreU(hn::BitCast(df, hn::InterleaveUpper(df64, a, b)), df, to + stride);
        hn::StoreU(hn::BitCast(df, hn::InterleaveLower(df64, c, d)), df, to + 2 * stride);
        hn::StoreU(hn::BitCast(df, hn::InterleaveUpper(df64, c, d)), df, to + 3 * stride);
      }
    }
  }
  transpose_rest<Weights>(args, whole_outs, 0, whole_k, out, stride);
  transpose_rest<Weights>(args, 0, whole_k, args.k, out, stride);
#endif
}

void transpose_bf16(const PackArgs& args, float* out, std::int64_t stride) {
  transpose<WidenBf16>(args, out, stride);
}
void transpose_kept_f32(const PackArgs& args, float* out, std::int64_t stride) {
  transpose<KeepF32>(args, out, stride);
}
void transpose_rounded_f32(const PackArgs& args, float* out, std::int64_t stride) {
  transpose<RoundF32>(args, out, stride);
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(transpose_bf16);
HWY_EXPORT(transpose_kept_f32);
HWY_EXPORT(transpose_rounded_f32);

}  // namespace

void pack_bf16(const PackArgs& args, Bf16* out, std::int64_t stride) {
  const std::int64_t row_bytes = args.stride * dtype_bytes(args.dtype);
  for (std::int64_t o = 0; o < args.outs; ++o) {
    const std::byte* row = args.w + o * row_bytes;
    if (args.dtype == DType::kBf16) {
      std::memcpy(out + o * stride, row, static_cast<std::size_t>(args.k) * sizeof(Bf16));
    } else {
      round_to_bf16(reinterpret_cast<const float*>(row), args.k, out + o * stride);
    }
    std::fill_n(out + o * stride + args.k, stride - args.k, Bf16{});
  }
}

void transpose_f32(const PackArgs& args, bool rounded, float* out, std::int64_t out_stride) {
  const auto kernel = args.dtype == DType::kBf16 ? HWY_DYNAMIC_DISPATCH(transpose_bf16)
                      : rounded                  ? HWY_DYNAMIC_DISPATCH(transpose_rounded_f32)
                                                 : HWY_DYNAMIC_DISPATCH(transpose_kept_f32);
  kernel(args, out, out_stride);
}

void pack_f32_panels(const PackArgs& args, bool rounded, float* out) {
  for (std::int64_t o = 0; o < args.outs; o += kGemmPanel) {
    PackArgs panel = args;
    panel.w += o * args.stride * dtype_bytes(args.dtype);
    panel.outs = std::min(kGemmPanel, args.outs - o);
    transpose_f32(panel, rounded, out + o * args.k, kGemmPanel);
  }
}

}  // namespace mamba3
#endif  // HWY_ONCE
