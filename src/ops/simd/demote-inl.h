// Doubles rounded to floats, for whichever target includes it (Highway's per-target include guard).
#if defined(MAMBA3_OPS_SIMD_DEMOTE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_OPS_SIMD_DEMOTE_INL_H
#undef MAMBA3_OPS_SIMD_DEMOTE_INL_H
#else
#define MAMBA3_OPS_SIMD_DEMOTE_INL_H
#endif

#include <cstddef>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {

// hn::DemoteTo turns what overflows, infinity too, into the largest float on the two targets that
// have no vectors.
template <class D, class V>
HWY_INLINE hwy::HWY_NAMESPACE::Vec<D> demote(D df32, V v) {
  namespace hn = hwy::HWY_NAMESPACE;
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  const hn::Rebind<double, D> df64;
  double from[HWY_MAX_BYTES / sizeof(double)];
  float to[HWY_MAX_BYTES / sizeof(double)];
  hn::StoreU(v, df64, from);
  for (std::size_t i = 0; i < hn::Lanes(df64); ++i) to[i] = static_cast<float>(from[i]);
  return hn::LoadU(df32, to);
#else
  return hn::DemoteTo(df32, v);
#endif
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
