#include "ops/linear/round_bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/round_bf16.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/linear/load_weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void narrow(const float* values, std::int64_t count, Bf16* out) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<std::uint32_t, decltype(df)> du32;
  const hn::Rebind<std::uint16_t, decltype(df)> du16;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  auto* bits = reinterpret_cast<std::uint16_t*>(out);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto upper = hn::ShiftRight<16>(bf16_bits(df, hn::LoadU(df, values + i)));
    // Only 16 bits are set, so any narrowing is exact; TruncateTo takes unsigned numbers.
    hn::StoreU(hn::TruncateTo(du16, hn::BitCast(du32, upper)), du16, bits + i);
  }
  for (; i < count; ++i) out[i] = to_bf16(values[i]);
}

void narrow_and_widen(const float* values, std::int64_t count, float* out) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::BitCast(df, bf16_bits(df, hn::LoadU(df, values + i))), df, out + i);
  }
  for (; i < count; ++i) out[i] = to_float(to_bf16(values[i]));
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(narrow);
HWY_EXPORT(narrow_and_widen);

}  // namespace

void round_to_bf16(const float* values, std::int64_t count, Bf16* out) {
  HWY_DYNAMIC_DISPATCH(narrow)(values, count, out);
}

void round_through_bf16(const float* values, std::int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(narrow_and_widen)(values, count, out);
}

}  // namespace mamba3
#endif  // HWY_ONCE
