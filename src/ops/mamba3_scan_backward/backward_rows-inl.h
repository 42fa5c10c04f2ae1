// What precedes and follows the matrix products of one chunk of the backward pass: the weights of
// the scores and of their gradients, gate and out-norm, rotation and bias, the norms of B and C.
#if defined(MAMBA3_BACKWARD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_BACKWARD_ROWS_INL_H_
#undef MAMBA3_BACKWARD_ROWS_INL_H_
#else
#define MAMBA3_BACKWARD_ROWS_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <numbers>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "ops/mamba3_common/mamba3_token-inl.h"
#include "ops/mamba3_scan/scan_prepare-inl.h"
#include "ops/mamba3_scan_backward/backward_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// sum of a * b over `rows` rows, in two chains of vectors and one of the elements that fill none.
HWY_INLINE double dot_rows(const float* a, const float* b, std::int64_t stride, std::int64_t rows,
                           std::int64_t columns) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d);
  auto odd = hn::Zero(d);
  float rest = 0;
  for (std::int64_t row = 0; row < rows; ++row, a += stride, b += stride) {
    std::int64_t i = 0;
    for (; i + 2 * lanes <= columns; i += 2 * lanes) {
      even = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), even);
      odd = hn::MulAdd(hn::LoadU(d, a + i + lanes), hn::LoadU(d, b + i + lanes), odd);
    }
    for (; i + lanes <= columns; i += lanes) {
      even = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), even);
    }
    for (; i < columns; ++i) rest += a[i] * b[i];
  }
  return static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)))) + rest;
}

HWY_INLINE void add_row(const float* from, std::int64_t count, float* to) {
  for_lanes<float>(count, [&](auto d, std::int64_t i) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, to + i), hn::LoadU(d, from + i)), d, to + i);
  });
}

// Columns of a chunk's scores, by whole vectors.
template <class Body>
HWY_INLINE void for_columns(std::int64_t rows, const Body& body) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t j = 0; j < rows; j += lanes) {
    body(d, j, hn::Iota(d, static_cast<float>(j)));
  }
}

// decays[t, j] = exp(sum_t - sum_j) for earlier tokens j, weights[t, j] the same times source_j and
// `now` for the token itself; zeros for later ones.
inline HWY_NOINLINE void chunk_decays(const ChunkSizes& sizes, const ChunkInputs& in,
                                      const BackwardScratch& scratch) {
  const ChunkScratch& chunk = scratch.chunk;
  const std::int64_t rows = in.tokens * sizes.rank;
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    const std::int64_t own = t * sizes.rank;
    float* decays = scratch.decays + t * sizes.row_stride;
    float* weights = chunk.weights + t * sizes.row_stride;
    const auto now = static_cast<float>(in.scalars[t].now);
    for_columns(rows, [&](auto d, std::int64_t j, auto column) HWY_ATTR {
      const auto difference =
          hn::Add(hn::Sub(hn::Set(d, chunk.sum_high[own]), hn::LoadU(d, chunk.sum_high + j)),
                  hn::Sub(hn::Set(d, chunk.sum_low[own]), hn::LoadU(d, chunk.sum_low + j)));
      const auto earlier = hn::Lt(column, hn::Set(d, static_cast<float>(own)));
      const auto seen = hn::Lt(column, hn::Set(d, static_cast<float>(own + sizes.rank)));
      const auto decay =
          hn::IfThenElseZero(earlier, exp_or_nan(d, hn::IfThenElseZero(earlier, difference)));
      const auto weight = hn::Mul(decay, hn::LoadU(d, chunk.source + j));
      hn::StoreU(decay, d, decays + j);
      hn::StoreU(hn::IfThenElse(earlier, weight, hn::IfThenElseZero(seen, hn::Set(d, now))), d,
                 weights + j);
    });
  }
}

// scores = raw_scores * weights, zeros above the diagonal.
inline HWY_NOINLINE void weigh_scores(const ChunkSizes& sizes, const BackwardScratch& scratch,
                                      std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t limit = scratch.chunk.row_limit[row];
    const float* weights = scratch.chunk.weights + scratch.chunk.row_token[row] * sizes.row_stride;
    const float* raw = scratch.raw_scores + row * sizes.row_stride;
    float* scores = scratch.chunk.scores + row * sizes.row_stride;
    for_columns(rows, [&](auto d, std::int64_t j, auto column) HWY_ATTR {
      const auto seen = hn::Lt(column, hn::Set(d, static_cast<float>(limit)));
      const auto score = hn::Mul(hn::LoadU(d, raw + j), hn::LoadU(d, weights + j));
      hn::StoreU(hn::IfThenElseZero(seen, score), d, scores + j);
    });
  }
}

// From the gradient of the weighted scores to that of the raw ones (in place) and of the weights.
// Tokens are taken from the last to the first, so that `later` [rows], the sum over the tokens
// taken so far, is what their scores have lost to this token's decay: nothing is subtracted.
inline HWY_NOINLINE void weigh_grad_scores(const ChunkSizes& sizes, const ChunkInputs& in,
                                           const BackwardScratch& scratch) {
  const hn::ScalableTag<float> full;
  const std::int64_t rows = in.tokens * sizes.rank;
  const float* source = scratch.chunk.source;
  for_columns(rows, [&](auto d, std::int64_t j, auto)
                        HWY_ATTR { hn::StoreU(hn::Zero(d), d, scratch.later + j); });
  for (std::int64_t t = in.tokens - 1; t >= 0; --t) {
    const std::int64_t own = t * sizes.rank;
    const float* weights = scratch.chunk.weights + t * sizes.row_stride;
    const float* decays = scratch.decays + t * sizes.row_stride;
    auto now = hn::Zero(full);
    auto log_decay = hn::Zero(full);
    for_columns(rows, [&](auto d, std::int64_t j, auto column) HWY_ATTR {
      const auto earlier = hn::Lt(column, hn::Set(d, static_cast<float>(own)));
      const auto seen = hn::Lt(column, hn::Set(d, static_cast<float>(own + sizes.rank)));
      const auto decay = hn::LoadU(d, decays + j);
      const auto weight = hn::LoadU(d, weights + j);
      auto later = hn::LoadU(d, scratch.later + j);
      for (std::int64_t row = own; row < own + sizes.rank; ++row) {
        float* grads = scratch.grad_scores + row * sizes.row_stride + j;
        const auto grad = hn::IfThenElseZero(seen, hn::LoadU(d, grads));
        const auto raw = hn::LoadU(d, scratch.raw_scores + row * sizes.row_stride + j);
        const auto product = hn::IfThenElseZero(seen, hn::Mul(grad, raw));
        later = hn::MulAdd(product, decay, later);
        now = hn::Add(now, hn::IfThenZeroElse(earlier, product));
        hn::StoreU(hn::Mul(grad, weight), d, grads);
      }
      hn::StoreU(later, d, scratch.later + j);
      log_decay =
          hn::Add(log_decay, hn::IfThenElseZero(earlier, hn::Mul(later, hn::LoadU(d, source + j))));
    });
    scratch.now[t] = static_cast<double>(hn::GetLane(hn::SumOfLanes(full, now)));
    scratch.log_inside[t] = static_cast<double>(hn::GetLane(hn::SumOfLanes(full, log_decay)));
  }
}

// v * sigmoid(v) and its slope.
template <class D, class V>
HWY_INLINE void silu_and_slope(D d, V v, V& at, V& slope) {
  const auto one = hn::Set(d, 1.0f);
  const auto e = hn::Exp(d, hn::Neg(hn::Abs(v)));
  const auto large = hn::Div(one, hn::Add(one, e));
  const auto small = hn::Mul(large, e);
  const auto negative = hn::Lt(v, hn::Zero(d));
  const auto sigmoid = hn::IfThenElse(negative, small, large);
  const auto rest = hn::IfThenElse(negative, large, small);
  at = hn::Mul(v, sigmoid);
  slope = hn::Mul(sigmoid, hn::MulAdd(v, rest, one));
}

// v / rms(v) * weight, with `scale` = 1 / rms: from `grad`, that of the result, to that of v in its
// place; adds to the gradient of the weight. In double: what is left across v is little where v has
// few elements.
HWY_INLINE void norm_row_backward(const float* v, const float* weight, double scale,
                                  std::int64_t count, float* grad, float* grad_weight) {
  const hn::ScalableTag<double> full;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  const auto load = [](auto d, const float* from) HWY_ATTR {
    return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, decltype(d)>(), from));
  };
  auto sums = hn::Zero(full);
  std::int64_t done = 0;
  for (; done + lanes <= count; done += lanes) {
    const auto g = hn::Mul(load(full, grad + done), load(full, weight + done));
    sums = hn::MulAdd(g, load(full, v + done), sums);
  }
  double along = hn::GetLane(hn::SumOfLanes(full, sums));
  for (; done < count; ++done) {
    along += static_cast<double>(grad[done]) * weight[done] * v[done];
  }
  along *= scale * scale / static_cast<double>(count);
  for_lanes<double>(count, [&](auto d, std::int64_t i) HWY_ATTR {
    const hn::Rebind<float, decltype(d)> df;
    const auto g = load(d, grad + i);
    const auto at = load(d, v + i);
    const auto straight = hn::NegMulAdd(hn::Set(d, along), at, hn::Mul(g, load(d, weight + i)));
    const auto unit = hn::DemoteTo(df, hn::Mul(at, hn::Set(d, scale)));
    hn::StoreU(hn::MulAdd(hn::LoadU(df, grad + i), unit, hn::LoadU(df, grad_weight + i)), df,
               grad_weight + i);
    hn::StoreU(hn::DemoteTo(df, hn::Mul(straight, hn::Set(d, scale))), df, grad + i);
  });
}

// The gate of one token of one head, backward: from grad_y [p] to grad_o [r, p], the gradient of
// what the state and the scores gave, and grad_z [p] (assigned). y [r, p] holds the read-out.
HWY_INLINE void gate_row_backward(const Mamba3Dims& dims, const GateArgs& gate, const float* grad_y,
                                  std::int64_t stride, float* y, float* grad_o, float* grad_z,
                                  const HeadSums& sums) {
  for (std::int64_t r = 0; r < dims.rank; ++r, y += stride, grad_o += stride) {
    const std::int64_t at = r * dims.head_dim;
    skip_row(dims, gate, r, y);
    const double scale = dims.out_norm ? inverse_rms(y, dims.head_dim) : 1;
    for_lanes<float>(dims.head_dim, [&](auto d, std::int64_t i) HWY_ATTR {
      const auto z = hn::LoadU(d, gate.z + i);
      auto grad = hn::LoadU(d, grad_y + i);
      auto normed = hn::LoadU(d, y + i);
      if (dims.out_norm) {
        normed = hn::Mul(hn::Mul(normed, hn::Set(d, static_cast<float>(scale))),
                         hn::LoadU(d, gate.out_norm + i));
      }
      auto at_z = hn::Zero(d);
      auto slope = hn::Zero(d);
      const auto z_weight = dims.mimo ? hn::LoadU(d, gate.mimo_z + at + i) : hn::Set(d, 1.0f);
      silu_and_slope(d, hn::Mul(z, z_weight), at_z, slope);
      if (dims.mimo) {
        float* to = sums.mimo_o + at + i;
        hn::StoreU(hn::MulAdd(hn::Mul(grad, normed), at_z, hn::LoadU(d, to)), d, to);
        grad = hn::Mul(grad, hn::LoadU(d, gate.mimo_o + at + i));
      }
      const auto grad_gate = hn::Mul(hn::Mul(grad, normed), slope);
      if (dims.mimo) {
        float* to = sums.mimo_z + at + i;
        hn::StoreU(hn::MulAdd(grad_gate, z, hn::LoadU(d, to)), d, to);
      }
      const auto before = r == 0 ? hn::Zero(d) : hn::LoadU(d, grad_z + i);
      hn::StoreU(hn::MulAdd(grad_gate, z_weight, before), d, grad_z + i);
      hn::StoreU(hn::Mul(grad, at_z), d, grad_o + i);
    });
    if (dims.out_norm) {
      norm_row_backward(y, gate.out_norm, scale, dims.head_dim, grad_o, sums.out_norm);
    }
  }
}

// x * mimo_x for one rank, backward: adds to grad_x [p] and, times x, to the sums of mimo_x. `grad`
// is grad_row plus skip times grad_o; grad_o may be null.
HWY_INLINE void spread_row_backward(const Mamba3Dims& dims, const Mamba3Params& params,
                                    std::int64_t head, std::int64_t r, const float* x,
                                    const float* grad_row, const float* grad_o,
                                    const HeadSums& sums, float* grad_x) {
  const std::int64_t at = r * dims.head_dim;
  const float* mimo_x = dims.mimo ? params.mimo_x + head * dims.rank * dims.head_dim + at : nullptr;
  for_lanes<float>(dims.head_dim, [&](auto d, std::int64_t i) HWY_ATTR {
    auto grad = hn::LoadU(d, grad_row + i);
    if (grad_o != nullptr) {
      grad = hn::MulAdd(hn::Set(d, params.skip[head]), hn::LoadU(d, grad_o + i), grad);
    }
    if (mimo_x != nullptr) {
      float* to = sums.mimo_x + at + i;
      hn::StoreU(hn::MulAdd(grad, hn::LoadU(d, x + i), hn::LoadU(d, to)), d, to);
      grad = hn::Mul(grad, hn::LoadU(d, mimo_x + i));
    }
    hn::StoreU(hn::Add(hn::LoadU(d, grad_x + i), grad), d, grad_x + i);
  });
}

// Rot() of one row, backward: `row` is the result, `grad` its gradient, which turns back in place;
// adds to the gradient of the phases.
HWY_INLINE void unrotate_row(const Mamba3Dims& dims, const float* row, const float* cosine,
                             const float* sine, float* grad, float* phase) {
  const std::int64_t half = dims.state / 2;
  for_lanes<float>(dims.angles, [&](auto d, std::int64_t i) HWY_ATTR {
    auto row_a = hn::Zero(d);
    auto row_b = hn::Zero(d);
    auto grad_a = hn::Zero(d);
    auto grad_b = hn::Zero(d);
    if (dims.mimo) {
      row_a = hn::LoadU(d, row + i);
      row_b = hn::LoadU(d, row + half + i);
      grad_a = hn::LoadU(d, grad + i);
      grad_b = hn::LoadU(d, grad + half + i);
    } else {
      hn::LoadInterleaved2(d, row + 2 * i, row_a, row_b);
      hn::LoadInterleaved2(d, grad + 2 * i, grad_a, grad_b);
    }
    const auto turn = hn::NegMulAdd(grad_a, row_b, hn::Mul(grad_b, row_a));
    hn::StoreU(hn::Add(hn::LoadU(d, phase + i), turn), d, phase + i);
    const auto c = hn::LoadU(d, cosine + i);
    const auto s = hn::LoadU(d, sine + i);
    const auto back_a = hn::MulAdd(grad_b, s, hn::Mul(grad_a, c));
    const auto back_b = hn::NegMulAdd(grad_a, s, hn::Mul(grad_b, c));
    if (dims.mimo) {
      hn::StoreU(back_a, d, grad + i);
      hn::StoreU(back_b, d, grad + half + i);
    } else {
      hn::StoreInterleaved2(back_a, back_b, d, grad + 2 * i);
    }
  });
}

// The rows of a chunk's K or Q before rotation: their gradients are added to those of the biases
// [r, n] and left in `out` [tokens, r, n] for the sum over heads, assigned or added to it.
inline HWY_NOINLINE void emit_rows(const ChunkSizes& sizes, std::int64_t tokens, const float* grads,
                                   float* bias, float* out, bool add) {
  for (std::int64_t row = 0; row < tokens * sizes.rank; ++row) {
    float* sum = bias + row % sizes.rank * sizes.n;
    for_lanes<float>(sizes.n, [&](auto d, std::int64_t i) HWY_ATTR {
      const auto grad = hn::LoadU(d, grads + i);
      hn::StoreU(hn::Add(hn::LoadU(d, sum + i), grad), d, sum + i);
      hn::StoreU(add ? hn::Add(hn::LoadU(d, out + i), grad) : grad, d, out + i);
    });
    grads += sizes.n_stride;
    out += sizes.n;
  }
}

// The gradient of a token's phases, which are those of all tokens behind it too: to that of its dt
// and, times dt, to `out` [s], which is assigned or added to.
HWY_INLINE double phase_backward(const double* half_tanh, double dt, std::int64_t angles,
                                 const float* phase, float* out, bool add) {
  for_lanes<float>(angles, [&](auto d, std::int64_t i) HWY_ATTR {
    const auto grad = hn::Mul(hn::LoadU(d, phase + i), hn::Set(d, static_cast<float>(dt)));
    hn::StoreU(add ? hn::Add(hn::LoadU(d, out + i), grad) : grad, d, out + i);
  });
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto sums = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + lanes <= angles; i += lanes) {
    sums =
        hn::MulAdd(hn::PromoteTo(d, hn::LoadU(df, phase + i)), hn::LoadU(d, half_tanh + i), sums);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, sums));
  for (; i < angles; ++i) sum += static_cast<double>(phase[i]) * half_tanh[i];
  return 2 * std::numbers::pi * sum;  // a step is pi tanh(angle) dt
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once a target
