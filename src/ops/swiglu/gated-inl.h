// up * silu(gate) on vectors of doubles, for whichever target includes it (Highway's per-target
// include guard): swiglu and its backward make the same bits of it.
#if defined(MAMBA3_OPS_SWIGLU_GATED_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_OPS_SWIGLU_GATED_INL_H
#undef MAMBA3_OPS_SWIGLU_GATED_INL_H
#else
#define MAMBA3_OPS_SWIGLU_GATED_INL_H
#endif

#include "hwy/highway.h"
#include "ops/simd/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {

// e^-gate overflows to infinity, so that gate = -1000 gives -0 and gate = -infinity a NaN, as the
// formula has it.
template <class D, class V>
HWY_INLINE V gated(D df64, V up, V gate) {
  namespace hn = hwy::HWY_NAMESPACE;
  const auto one = hn::Set(df64, 1.0);
  const auto e = exp_f64(df64, hn::Neg(gate));
  return hn::Div(hn::Mul(up, gate), hn::Add(one, e));
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
