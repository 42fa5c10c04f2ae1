// How stored weights become vectors of floats: exactly, or rounded to bf16 on the way. For
// whichever target includes it (Highway's per-target include guard).
#if defined(MAMBA3_OPS_LINEAR_LOAD_WEIGHTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_OPS_LINEAR_LOAD_WEIGHTS_INL_H
#undef MAMBA3_OPS_LINEAR_LOAD_WEIGHTS_INL_H
#else
#define MAMBA3_OPS_LINEAR_LOAD_WEIGHTS_INL_H
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "mamba3/tensor.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {

// The bits of the nearest bf16 number in the upper halves; what to_bf16 gives, NaN included.
template <class D, class V>
HWY_INLINE auto bf16_bits(D /*df*/, V value) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<std::uint32_t, D> du32;
  const auto u = hn::BitCast(du32, value);
  const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du32, 1));
  const auto rounded = hn::Add(u, hn::Add(odd, hn::Set(du32, 0x7fff)));
  const auto quiet = hn::Or(u, hn::Set(du32, 0x400000));
  const auto bits = hn::IfThenElse(hn::RebindMask(du32, hn::IsNaN(value)), quiet, rounded);
  return hn::And(bits, hn::Set(du32, 0xffff0000u));
}

struct WidenBf16 {
  static constexpr std::int64_t kBytes = 2;
  template <class D>
  static HWY_INLINE auto load(D df, const std::byte* w) {
    namespace hn = hwy::HWY_NAMESPACE;
    const hn::Rebind<std::uint16_t, D> du16;
    const hn::Rebind<std::uint32_t, D> du32;
    const auto half = hn::LoadU(du16, reinterpret_cast<const std::uint16_t*>(w));
    return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du32, half)));
  }
  static float load_one(const std::byte* w) {
    Bf16 value{};
    std::memcpy(&value, w, sizeof(value));
    return to_float(value);
  }
};

struct KeepF32 {
  static constexpr std::int64_t kBytes = 4;
  template <class D>
  static HWY_INLINE auto load(D df, const std::byte* w) {
    return hwy::HWY_NAMESPACE::LoadU(df, reinterpret_cast<const float*>(w));
  }
  static float load_one(const std::byte* w) {
    float value = 0;
    std::memcpy(&value, w, sizeof(value));
    return value;
  }
};

struct RoundF32 {
  static constexpr std::int64_t kBytes = 4;
  template <class D>
  static HWY_INLINE auto load(D df, const std::byte* w) {
    return hwy::HWY_NAMESPACE::BitCast(df, bf16_bits(df, KeepF32::load(df, w)));
  }
  static float load_one(const std::byte* w) { return to_float(to_bf16(KeepF32::load_one(w))); }
};

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
