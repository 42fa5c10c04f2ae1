// What precedes and follows the matrix products of one chunk: decays and weights, the rows K, Q and
// X, the term that a chunk takes over from the token before it, the gate.
#if defined(MAMBA3_OPS_MAMBA3_SCAN_SCAN_PREPARE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_OPS_MAMBA3_SCAN_SCAN_PREPARE_INL_H_
#undef MAMBA3_OPS_MAMBA3_SCAN_SCAN_PREPARE_INL_H_
#else
#define MAMBA3_OPS_MAMBA3_SCAN_SCAN_PREPARE_INL_H_
#endif

#include <cmath>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "ops/mamba3_common/mamba3_token-inl.h"
#include "ops/mamba3_scan/scan_chunk.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3 {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// exp() of less is 0 in a double too, so cutting a log decay here changes nothing, and sums over a
// chunk stay small and finite. A NaN stays.
constexpr double kLeastLogDecay = -1000;

HWY_INLINE double cut_log_decay(double log_decay) {
  return log_decay < kLeastLogDecay ? kLeastLogDecay : log_decay;
}

// Highway's takes a NaN for a number far below 0.
template <class D, class V>
HWY_INLINE V exp_or_nan(D d, V v) {
  return hn::IfThenElse(hn::IsNaN(v), v, hn::Exp(d, v));
}

HWY_INLINE void exp_in_place(float* values, std::int64_t count) {
  for_lanes<float>(count, [&](auto d, std::int64_t i) HWY_ATTR {
    hn::StoreU(exp_or_nan(d, hn::LoadU(d, values + i)), d, values + i);
  });
}

// Fills the scalars of rows and tokens. Sums are taken in double and kept as two floats: the small
// decays after a strong one must not be lost, and differences of sums are what weights are made of.
inline HWY_NOINLINE void chunk_scalars(const ChunkSizes& sizes, const ChunkInputs& in,
                                       const ChunkScratch& scratch) {
  const std::int64_t rank = sizes.rank;
  double sum = 0;
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    sum += cut_log_decay(in.scalars[t].log_decay);
    scratch.decay[t] = static_cast<float>(sum);
    double source = in.scalars[t].now;
    if (t + 1 < in.tokens) source += in.scalars[t + 1].carry;
    const auto high = static_cast<float>(sum);
    for (std::int64_t row = t * rank; row < (t + 1) * rank; ++row) {
      scratch.row_token[row] = static_cast<std::int32_t>(t);
      scratch.row_limit[row] = static_cast<std::int32_t>((t + 1) * rank);
      scratch.sum_high[row] = high;
      scratch.sum_low[row] = static_cast<float>(sum - high);
      scratch.source[row] = static_cast<float>(source);
    }
  }
  const std::int64_t rows = in.tokens * rank;
  for (std::int64_t row = rows; row < rows + kRowPadding; ++row) {
    scratch.row_token[row] = static_cast<std::int32_t>(in.tokens - 1);
    scratch.row_limit[row] = 0;
  }
  // The sums once more, from the end: exp(sum_last - sum_t).
  double after = 0;
  for (std::int64_t t = in.tokens - 1; t >= 0; --t) {
    scratch.to_last[t] = static_cast<float>(after);
    after += cut_log_decay(in.scalars[t].log_decay);
  }
  exp_in_place(scratch.decay, in.tokens);
  exp_in_place(scratch.to_last, in.tokens);
  for (std::int64_t t = 0; t < in.tokens; ++t) scratch.to_last[t] *= scratch.source[t * rank];
}

// weights[t, j] = exp(sum_t - sum_j) * source_j for earlier tokens j, `now` for the token itself.
// Columns of later tokens are left undefined.
inline HWY_NOINLINE void chunk_weights(const ChunkSizes& sizes, const ChunkInputs& in,
                                       const ChunkScratch& scratch) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    const std::int64_t own = t * sizes.rank;
    const auto high = hn::Set(d, scratch.sum_high[own]);
    const auto low = hn::Set(d, scratch.sum_low[own]);
    float* weights = scratch.weights + t * sizes.row_stride;
    for (std::int64_t j = 0; j < own; j += lanes) {
      const auto difference = hn::Add(hn::Sub(high, hn::LoadU(d, scratch.sum_high + j)),
                                      hn::Sub(low, hn::LoadU(d, scratch.sum_low + j)));
      const auto weight = hn::Mul(exp_or_nan(d, difference), hn::LoadU(d, scratch.source + j));
      hn::StoreU(weight, d, weights + j);
    }
    for (std::int64_t r = 0; r < sizes.rank; ++r) {
      weights[own + r] = static_cast<float>(in.scalars[t].now);
    }
  }
}

// A token's x, z and y lie a whole row apart from the next token's, further than the processor
// looks ahead by itself.
HWY_INLINE void prefetch_token(const Mamba3Dims& dims, const ChunkInputs& in,
                               std::int64_t row_stride, std::int64_t t) {
  constexpr std::int64_t kLineFloats = 16;
  for (std::int64_t i = 0; i < dims.head_dim; i += kLineFloats) {
    hwy::Prefetch(in.x + t * row_stride + i);
    hwy::Prefetch(in.z + t * row_stride + i);
    hwy::Prefetch(in.y + t * in.y_stride + i);
  }
}

// Moves the turns over the chunk and keeps each token's rotation.
inline HWY_NOINLINE void chunk_phases(const Mamba3Dims& dims, const ChunkInputs& in,
                                      std::int64_t row_stride, std::uint32_t* turns,
                                      const ChunkScratch& scratch) {
  const std::int64_t s = dims.angles;
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    const double turning = in.scalars[t].turning;
    const double* half_tanh = in.half_tanh + t * s;
    prefetch_token(dims, in, row_stride, t);
    float* cosine = scratch.cosine + t * s;
    float* sine = scratch.sine + t * s;
    if (in.finite_angles[t] != 0 && std::isfinite(turning)) [[likely]] {
      advance_turns(half_tanh, turning, s, turns);
      cos_sin_row(turns, s, cosine, sine);
    } else {
      advance_phases(half_tanh, turning, s, turns, cosine, sine);
    }
  }
}

// rows = Rot(normed + bias): K or Q of a chunk.
inline HWY_NOINLINE void chunk_rows(const Mamba3Dims& dims, const ChunkSizes& sizes,
                                    const ChunkInputs& in, const ChunkScratch& scratch,
                                    const float* normed, const float* bias, float* rows) {
  const std::int64_t head_bias = in.head * dims.rank * dims.state;
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    for (std::int64_t r = 0; r < dims.rank; ++r) {
      const std::int64_t row = t * dims.rank + r;
      bias_rotate_row(dims, normed + row * dims.groups * dims.state,
                      bias + head_bias + r * dims.state, scratch.cosine + t * dims.angles,
                      scratch.sine + t * dims.angles, rows + row * sizes.n_stride);
    }
  }
}

// to[j, i] = from[i, j] for `rows` rows of `columns` columns; to's rows may be filled up to a
// multiple of four.
inline HWY_NOINLINE void transpose(const float* from, std::int64_t from_stride, std::int64_t rows,
                                   std::int64_t columns, float* to, std::int64_t to_stride) {
  std::int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::Full128<float> d;
  const hn::Repartition<double, decltype(d)> dd;
  for (; i < rows; i += 4) {
    const float* in = from + i * from_stride;
    float* out = to + i;
    std::int64_t j = 0;
    for (; j + 4 <= columns; j += 4) {
      const auto a = hn::LoadU(d, in + j);
      const auto b = hn::LoadU(d, in + from_stride + j);
      const auto c = hn::LoadU(d, in + 2 * from_stride + j);
      const auto e = hn::LoadU(d, in + 3 * from_stride + j);
      const auto ab_low = hn::BitCast(dd, hn::InterleaveLower(d, a, b));
      const auto ab_high = hn::BitCast(dd, hn::InterleaveUpper(d, a, b));
      const auto ce_low = hn::BitCast(dd, hn::InterleaveLower(d, c, e));
      const auto ce_high = hn::BitCast(dd, hn::InterleaveUpper(d, c, e));
      float* o = out + j * to_stride;
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab_low, ce_low)), d, o);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab_low, ce_low)), d, o + to_stride);
      hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab_high, ce_high)), d, o + 2 * to_stride);
      hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab_high, ce_high)), d, o + 3 * to_stride);
    }
    for (; j < columns; ++j) {
      for (std::int64_t r = 0; r < 4; ++r) out[j * to_stride + r] = in[r * from_stride + j];
    }
  }
#endif
  for (; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  }
}

// out [p] = x * mimo_x * scale
HWY_INLINE void scale_x(const Mamba3Dims& dims, const Mamba3Params& params, std::int64_t head,
                        std::int64_t r, const float* x, float scale, float* out) {
  const float* mimo_x =
      dims.mimo ? params.mimo_x + (head * dims.rank + r) * dims.head_dim : nullptr;
  for_lanes<float>(dims.head_dim, [&](auto d, std::int64_t i) HWY_ATTR {
    auto v = hn::LoadU(d, x + i);
    if (mimo_x != nullptr) v = hn::Mul(v, hn::LoadU(d, mimo_x + i));
    hn::StoreU(hn::Mul(v, hn::Set(d, scale)), d, out + i);
  });
}

// x and x_state of a chunk.
inline HWY_NOINLINE void chunk_x(const Mamba3Dims& dims, const Mamba3Params& params,
                                 const ChunkSizes& sizes, const ChunkInputs& in,
                                 std::int64_t row_stride, const ChunkScratch& scratch) {
  const float* mimo_x = dims.mimo ? params.mimo_x + in.head * dims.rank * dims.head_dim : nullptr;
  for (std::int64_t row = 0; row < in.tokens * dims.rank; ++row) {
    const std::int64_t t = scratch.row_token[row];
    const float* from = in.x + t * row_stride;
    const float* mimo_row =
        mimo_x == nullptr ? nullptr : mimo_x + (row - t * dims.rank) * dims.head_dim;
    float* x = scratch.x + row * sizes.p_stride;
    float* x_state = scratch.x_state + row * sizes.p_stride;
    for_lanes<float>(dims.head_dim, [&](auto d, std::int64_t i) HWY_ATTR {
      auto v = hn::LoadU(d, from + i);
      if (mimo_row != nullptr) v = hn::Mul(v, hn::LoadU(d, mimo_row + i));
      hn::StoreU(v, d, x + i);
      hn::StoreU(hn::Mul(v, hn::Set(d, scratch.to_last[t])), d, x_state + i);
    });
  }
}

// Skip, out-norm, gate and the sum over ranks.
inline HWY_NOINLINE void chunk_gate(const Mamba3Dims& dims, const Mamba3Params& params,
                                    const ChunkSizes& sizes, const ChunkInputs& in,
                                    std::int64_t row_stride, const ChunkScratch& scratch) {
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    const GateArgs gate =
        gate_args(dims, params, in.head, in.x + t * row_stride, in.z + t * row_stride);
    gate_row(dims, gate, scratch.y + t * sizes.rank * sizes.p_stride, sizes.p_stride,
             in.y + t * in.y_stride);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mamba3
HWY_AFTER_NAMESPACE();

#endif  // include guard, once a target
