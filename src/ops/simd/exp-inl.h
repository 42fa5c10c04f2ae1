// e^x on vectors of doubles, for whichever target includes it (Highway's per-target include guard).
#if defined(MAMBA3_OPS_SIMD_EXP_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_OPS_SIMD_EXP_INL_H
#undef MAMBA3_OPS_SIMD_EXP_INL_H
#else
#define MAMBA3_OPS_SIMD_EXP_INL_H
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {

// Within 2e-10 of e^x, relative: far below what a result rounded to fp32 can show. e^0 is 1. Large
// x give infinity as std::exp does; x < -708 gives e^-708 (3e-308), never a denormal, never 0.
template <class D, class V>
HWY_INLINE V exp_f64(D df64, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::Rebind<std::int64_t, D> di64;
  // At 710 the exponent bits below are those of infinity.
  x = hn::Max(hn::Min(x, hn::Set(df64, 710.0)), hn::Set(df64, -708.0));
  const auto n = hn::Round(hn::Mul(x, hn::Set(df64, 1.4426950408889634)));
  const auto r = hn::NegMulAdd(n, hn::Set(df64, 0.6931471805599453), x);
  // 1 + r q(r), where q interpolates (e^r - 1) / r at the Chebyshev nodes of |r| <= ln 2 / 2.
  auto p = hn::Set(df64, 0.0001990758480723406);
  p = hn::MulAdd(p, r, hn::Set(df64, 0.0013941121384147177));
  p = hn::MulAdd(p, r, hn::Set(df64, 0.008333283514746366));
  p = hn::MulAdd(p, r, hn::Set(df64, 0.04166635273376301));
  p = hn::MulAdd(p, r, hn::Set(df64, 0.1666666678639873));
  p = hn::MulAdd(p, r, hn::Set(df64, 0.5000000047157259));
  p = hn::MulAdd(p, r, hn::Set(df64, 0.9999999999955042));
  p = hn::MulAdd(p, r, hn::Set(df64, 1.0));
  // 2^n by its exponent bits: the sum holds n + 1023 in its low bits.
  const auto biased = hn::BitCast(di64, hn::Add(n, hn::Set(df64, 6755399441055744.0 + 1023)));
  return hn::Mul(p, hn::BitCast(df64, hn::ShiftLeft<52>(biased)));
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
