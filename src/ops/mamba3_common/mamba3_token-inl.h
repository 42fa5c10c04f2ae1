// The vector part of one token that every path computes in the same way: phases, the rows K and Q,
// and what is left to do after the read-out. One vector of inputs goes through one order of
// operations, so equal inputs give equal bits in the chunked scan and in the step.
//
// Included once per instruction set (Highway's foreach_target), hence the guard that toggles.
#if defined(MAMBA3_OPS_MAMBA3_COMMON_MAMBA3_TOKEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_OPS_MAMBA3_COMMON_MAMBA3_TOKEN_INL_H_
#undef MAMBA3_OPS_MAMBA3_COMMON_MAMBA3_TOKEN_INL_H_
#else
#define MAMBA3_OPS_MAMBA3_COMMON_MAMBA3_TOKEN_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "ops/mamba3_common/mamba3_args.h"
#include "ops/mamba3_common/turns.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3 {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kNormEps = 1e-5f;

// body(tag, i) for i in steps of the tag's lanes: whole vectors, then single lanes, so nothing
// beyond `count` is touched.
template <class T, class Body>
HWY_INLINE void for_lanes(std::int64_t count, const Body& body) {
  const hn::ScalableTag<T> full;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(full, i);
  for (; i < count; ++i) body(hn::CappedTag<T, 1>(), i);
}

// The part of the turns that all heads share, [s]: tanh(angle) / 2 of the angles that begin at
// `from`, or fixed steps. A head's phase moves by rate * turning turns.
HWY_INLINE void turn_rates(const Mamba3Dims& dims, const float* angle_raw, std::int64_t from,
                           double* rates) {
  if (dims.fixed_steps) {
    for (std::int64_t i = 0; i < dims.angles; ++i) rates[i] = fixed_step_turns(i, dims.angles);
    return;
  }
  for_lanes<double>(dims.angles, [&](auto d, std::int64_t i) HWY_ATTR {
    const hn::Rebind<float, decltype(d)> df;
    const auto angle = hn::PromoteTo(d, hn::LoadU(df, angle_raw + from + i));
    hn::StoreU(hn::Mul(hn::Set(d, 0.5), hn::Tanh(d, angle)), d, rates + i);
  });
}

// turns[i] += half_tanh[i] * dt, in units of 2^-32 turns, modulo one turn. The product is reduced
// to
// [-1/2, 1/2] in double, which is exact, so an angle step of many turns keeps its fraction. A step
// that is not finite leaves the turns alone; advance_phases() marks it.
HWY_INLINE void advance_turns(const double* half_tanh, double dt, std::int64_t angles,
                              std::uint32_t* turns) {
  for_lanes<double>(angles, [&](auto d, std::int64_t i) HWY_ATTR {
    const hn::Rebind<std::int32_t, decltype(d)> di;
    const hn::Rebind<std::uint32_t, decltype(d)> du;
    const auto step = hn::Mul(hn::LoadU(d, half_tanh + i), hn::Set(d, dt));
    auto units = hn::Round(hn::Mul(hn::Sub(step, hn::Round(step)), hn::Set(d, 0x1p32)));
    // Half a turn is -2^31: +2^31 does not fit.
    units = hn::IfThenElse(hn::Ge(units, hn::Set(d, 0x1p31)), hn::Sub(units, hn::Set(d, 0x1p32)),
                           units);
    units = hn::IfThenElseZero(hn::IsFinite(step), units);
    const auto increment = hn::BitCast(du, hn::DemoteTo(di, units));
    hn::StoreU(hn::Add(hn::LoadU(du, turns + i), increment), du, turns + i);
  });
}

// Cosine and sine of unsigned 32-bit turns. The quarter and the rest are split in integers,
// exactly; the rest, in [-1, 1) of an eighth of a turn, goes through polynomials interpolated at
// Chebyshev nodes (errors below 3e-9), so results are within about one unit of a float's last
// place.
template <class D, class VU>
HWY_INLINE void cos_sin_of_turns(D d, VU turns, hn::Vec<D>& cosine, hn::Vec<D>& sine) {
  const hn::Rebind<std::int32_t, D> di;
  const hn::Rebind<std::uint32_t, D> du;
  const auto quarter = hn::ShiftRight<30>(hn::Add(turns, hn::Set(du, 1u << 29)));
  const auto rest = hn::BitCast(di, hn::Sub(turns, hn::ShiftLeft<30>(quarter)));
  const auto u = hn::Mul(hn::ConvertTo(d, rest), hn::Set(d, 0x1p-29f));
  const auto w = hn::Mul(u, u);

  auto s = hn::MulAdd(w, hn::Set(d, -3.595429073e-05f), hn::Set(d, 2.490006801e-03f));
  s = hn::MulAdd(w, s, hn::Set(d, -8.074543471e-02f));
  s = hn::Mul(u, hn::MulAdd(w, s, hn::Set(d, 7.853981610e-01f)));
  auto c = hn::MulAdd(w, hn::Set(d, 3.541952728e-06f), hn::Set(d, -3.259613803e-04f));
  c = hn::MulAdd(w, c, hn::Set(d, 1.585433815e-02f));
  c = hn::MulAdd(w, c, hn::Set(d, -3.084251373e-01f));
  c = hn::MulAdd(w, c, hn::Set(d, 1.0f));

  const auto one = hn::Set(du, 1u);
  const auto two = hn::Set(du, 2u);
  const auto odd = hn::MaskFromVec(hn::BitCast(d, hn::Sub(hn::Zero(du), hn::And(quarter, one))));
  const auto sine_sign = hn::ShiftLeft<30>(hn::And(quarter, two));
  const auto cosine_sign = hn::ShiftLeft<30>(hn::And(hn::Add(quarter, one), two));
  sine = hn::Xor(hn::IfThenElse(odd, c, s), hn::BitCast(d, sine_sign));
  cosine = hn::Xor(hn::IfThenElse(odd, s, c), hn::BitCast(d, cosine_sign));
}

// cosine, sine [s] of the turns of one head.
HWY_INLINE void cos_sin_row(const std::uint32_t* turns, std::int64_t angles, float* cosine,
                            float* sine) {
  for_lanes<float>(angles, [&](auto d, std::int64_t i) HWY_ATTR {
    const hn::Rebind<std::uint32_t, decltype(d)> du;
    auto c = hn::Zero(d);
    auto s = hn::Zero(d);
    cos_sin_of_turns(d, hn::LoadU(du, turns + i), c, s);
    hn::StoreU(c, d, cosine + i);
    hn::StoreU(s, d, sine + i);
  });
}

// One token of one head: moves its turns and gives the rotation of K and Q. Turns cannot hold a
// NaN, so a step that is not finite becomes a NaN rotation: it reaches the state and every later
// output, as it would with real angles.
HWY_INLINE void advance_phases(const double* half_tanh, double dt, std::int64_t angles,
                               std::uint32_t* turns, float* cosine, float* sine) {
  advance_turns(half_tanh, dt, angles, turns);
  cos_sin_row(turns, angles, cosine, sine);
  double all = 0;
  for (std::int64_t i = 0; i < angles; ++i) all += half_tanh[i] * dt * 0.0;
  if (all == 0) [[likely]]
    return;
  for (std::int64_t i = 0; i < angles; ++i) {
    if (std::isfinite(half_tanh[i] * dt)) continue;
    cosine[i] = sine[i] = std::numeric_limits<float>::quiet_NaN();
  }
}

// 1 / sqrt(mean of squares + eps), in double: squares of large floats overflow a float.
HWY_INLINE double inverse_rms(const float* row, std::int64_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto sums = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::PromoteTo(d, hn::LoadU(df, row + i));
    sums = hn::MulAdd(v, v, sums);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < count; ++i) sum += static_cast<double>(row[i]) * row[i];
  return 1.0 / std::sqrt(sum / static_cast<double>(count) + kNormEps);
}

// out = row / rms(row) * weight. In place is fine.
HWY_INLINE void norm_row(const float* row, const float* weight, std::int64_t count, float* out) {
  const double scale = inverse_rms(row, count);
  for_lanes<double>(count, [&](auto d, std::int64_t i) HWY_ATTR {
    const hn::Rebind<float, decltype(d)> df;
    const auto v = hn::PromoteTo(d, hn::LoadU(df, row + i));
    const auto w = hn::PromoteTo(d, hn::LoadU(df, weight + i));
    hn::StoreU(hn::DemoteTo(df, hn::Mul(hn::Mul(v, hn::Set(d, scale)), w)), df, out + i);
  });
}

// out = Rot(normed + bias) [n]: one row of K or Q. Pairs are (2i, 2i + 1), for MIMO (i, i + n/2).
HWY_INLINE void bias_rotate_row(const Mamba3Dims& dims, const float* normed, const float* bias,
                                const float* cosine, const float* sine, float* out) {
  const std::int64_t half = dims.state / 2;
  for_lanes<float>(dims.angles, [&](auto d, std::int64_t i) HWY_ATTR {
    auto a = hn::Zero(d);
    auto b = hn::Zero(d);
    auto bias_a = hn::Zero(d);
    auto bias_b = hn::Zero(d);
    if (dims.mimo) {
      a = hn::LoadU(d, normed + i);
      b = hn::LoadU(d, normed + half + i);
      bias_a = hn::LoadU(d, bias + i);
      bias_b = hn::LoadU(d, bias + half + i);
    } else {
      hn::LoadInterleaved2(d, normed + 2 * i, a, b);
      hn::LoadInterleaved2(d, bias + 2 * i, bias_a, bias_b);
    }
    a = hn::Add(a, bias_a);
    b = hn::Add(b, bias_b);
    const auto c = hn::LoadU(d, cosine + i);
    const auto s = hn::LoadU(d, sine + i);
    const auto turned_a = hn::NegMulAdd(b, s, hn::Mul(a, c));
    const auto turned_b = hn::MulAdd(b, c, hn::Mul(a, s));
    if (dims.mimo) {
      hn::StoreU(turned_a, d, out + i);
      hn::StoreU(turned_b, d, out + half + i);
    } else {
      hn::StoreInterleaved2(turned_a, turned_b, d, out + 2 * i);
    }
  });
  const auto add_bias = [&](std::int64_t begin, std::int64_t end) HWY_ATTR {
    for_lanes<float>(end - begin, [&](auto d, std::int64_t i) HWY_ATTR {
      const auto v = hn::Add(hn::LoadU(d, normed + begin + i), hn::LoadU(d, bias + begin + i));
      hn::StoreU(v, d, out + begin + i);
    });
  };
  if (dims.mimo) {
    add_bias(dims.angles, half);
    add_bias(half + dims.angles, dims.state);
  } else {
    add_bias(2 * dims.angles, dims.state);
  }
}

// v * sigmoid(v), with the exponential of a number that is never positive.
template <class D, class V>
HWY_INLINE V silu(D d, V v) {
  const auto e = hn::Exp(d, hn::Neg(hn::Abs(v)));
  const auto numerator = hn::IfThenElse(hn::Lt(v, hn::Zero(d)), hn::Mul(v, e), v);
  return hn::Div(numerator, hn::Add(hn::Set(d, 1.0f), e));
}

// What follows the read-out in one head of one token: skip, out-norm, gate, sum over ranks.
// read_out [r, p] holds h_t Q_r and may be overwritten; x, z, y [p]; the mimo parameters [r, p] and
// out_norm [p] are this head's.
struct GateArgs {
  const float* x;
  const float* z;
  float skip;
  const float* mimo_x;
  const float* mimo_z;
  const float* mimo_o;
  const float* out_norm;
};

// The parameters of one head, and one token's x and z for it.
HWY_INLINE GateArgs gate_args(const Mamba3Dims& dims, const Mamba3Params& params, std::int64_t head,
                              const float* x, const float* z) {
  const std::int64_t at = head * dims.rank * dims.head_dim;
  GateArgs gate{};
  gate.x = x;
  gate.z = z;
  gate.skip = params.skip[head];
  if (dims.mimo) {
    gate.mimo_x = params.mimo_x + at;
    gate.mimo_z = params.mimo_z + at;
    gate.mimo_o = params.mimo_o + at;
  }
  if (dims.out_norm) gate.out_norm = params.out_norm + head * dims.head_dim;
  return gate;
}

// read_out += skip * x, with each rank's own x.
HWY_INLINE void skip_row(const Mamba3Dims& dims, const GateArgs& gate, std::int64_t r, float* o) {
  for_lanes<float>(dims.head_dim, [&](auto d, std::int64_t i) HWY_ATTR {
    auto x = hn::LoadU(d, gate.x + i);
    if (dims.mimo) x = hn::Mul(x, hn::LoadU(d, gate.mimo_x + r * dims.head_dim + i));
    hn::StoreU(hn::MulAdd(hn::Set(d, gate.skip), x, hn::LoadU(d, o + i)), d, o + i);
  });
}

HWY_INLINE void gate_row(const Mamba3Dims& dims, const GateArgs& gate, float* read_out,
                         std::int64_t read_out_stride, float* y) {
  const std::int64_t p = dims.head_dim;
  if (dims.out_norm) {
    for (std::int64_t r = 0; r < dims.rank; ++r) {
      float* o = read_out + r * read_out_stride;
      skip_row(dims, gate, r, o);
      norm_row(o, gate.out_norm, p, o);
    }
  }
  for_lanes<float>(p, [&](auto d, std::int64_t i) HWY_ATTR {
    const auto x = hn::LoadU(d, gate.x + i);
    const auto z = hn::LoadU(d, gate.z + i);
    auto sum = hn::Zero(d);
    for (std::int64_t r = 0; r < dims.rank; ++r) {
      const std::int64_t at = r * p + i;
      auto out = hn::LoadU(d, read_out + r * read_out_stride + i);
      if (!dims.out_norm) {
        const auto own_x = dims.mimo ? hn::Mul(x, hn::LoadU(d, gate.mimo_x + at)) : x;
        out = hn::MulAdd(hn::Set(d, gate.skip), own_x, out);
      }
      if (dims.mimo) out = hn::Mul(out, hn::LoadU(d, gate.mimo_o + at));
      out = hn::Mul(out, silu(d, dims.mimo ? hn::Mul(z, hn::LoadU(d, gate.mimo_z + at)) : z));
      sum = r == 0 ? out : hn::Add(sum, out);
    }
    hn::StoreU(sum, d, y + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mamba3
HWY_AFTER_NAMESPACE();

#endif  // MAMBA3_OPS_MAMBA3_COMMON_MAMBA3_TOKEN_INL_H_
