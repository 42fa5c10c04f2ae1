#include "ops/mamba3_step/mamba3_step_cpu.h"

#include <algorithm>
#include <cmath>

#include "core/thread_pool.h"
#include "ops/mamba3_common/token_scalars.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/mamba3_step/mamba3_step_cpu.cpp"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/mamba3_common/mamba3_token-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// How far ahead of its use the state is asked for: the end of one head asks for the start of the
// next, which is on its way while the next head's rows are prepared.
constexpr std::int64_t kPrefetchFloats = 2048;
// Rows updated together: a few pages, so that the hardware sees one stream even where a block of
// columns is narrower than a row.
constexpr std::int64_t kBlockRows = 32;

// The coefficient of row n and rank r in an interleaved [r, n] (StepScratch).
template <int R>
HWY_INLINE float coefficient(const float* rows, std::int64_t state, std::int64_t n, int r) {
  const int first = r / 4 * 4;
  const int width = R - first < 4 ? R - first : 4;
  return rows[first * state + n * width + r % 4];
}

// V vectors of p at once, over rows [begin, end): h = decay h + sum_r (carry_r Kprev_r[n] + now_r
// K_r[n]), and read_out_r += Q_r[n] h.
template <int R, int V, class D>
HWY_INLINE void update_columns(D d, const Mamba3Dims& dims, float decay, const StepScratch& s,
                               std::int64_t begin, std::int64_t end, std::int64_t at, float* ssm) {
  const std::int64_t p = dims.head_dim;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  hn::Vec<D> carry[R][V];
  hn::Vec<D> now[R][V];
  hn::Vec<D> sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      carry[r][v] = hn::LoadU(d, s.x_carry + r * p + at + v * lanes);
      now[r][v] = hn::LoadU(d, s.x_now + r * p + at + v * lanes);
      sums[r][v] = hn::LoadU(d, s.read_out + r * p + at + v * lanes);
    }
  }
  const auto alpha = hn::Set(d, decay);
  float* row = ssm + begin * p + at;
  const std::int64_t state = dims.state;
  for (std::int64_t n = begin; n < end; ++n, row += p) {
    hn::Vec<D> h[V];
    for (int v = 0; v < V; ++v) hwy::Prefetch(row + v * lanes + kPrefetchFloats);
    for (int v = 0; v < V; ++v) h[v] = hn::Mul(alpha, hn::LoadU(d, row + v * lanes));
    for (int r = 0; r < R; ++r) {
      const auto k = hn::Set(d, coefficient<R>(s.k_previous, state, n, r));
      for (int v = 0; v < V; ++v) h[v] = hn::MulAdd(carry[r][v], k, h[v]);
    }
    for (int r = 0; r < R; ++r) {
      const auto k = hn::Set(d, coefficient<R>(s.k_now, state, n, r));
      for (int v = 0; v < V; ++v) h[v] = hn::MulAdd(now[r][v], k, h[v]);
    }
    for (int v = 0; v < V; ++v) hn::StoreU(h[v], d, row + v * lanes);
    for (int r = 0; r < R; ++r) {
      const auto q = hn::Set(d, coefficient<R>(s.q_now, state, n, r));
      for (int v = 0; v < V; ++v) sums[r][v] = hn::MulAdd(q, h[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) hn::StoreU(sums[r][v], d, s.read_out + r * p + at + v * lanes);
  }
}

// The widest block whose 3 R V vectors stay in registers.
template <int R>
constexpr int wide_block() {
  constexpr int kRegisters = HWY_MAX_BYTES >= 64 ? 27 : 12;
  constexpr int kFit = kRegisters / (3 * R);
  return kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
}

// One pass over the state of one head: rows in blocks that lie in one piece of memory, columns in
// blocks inside them.
template <int R>
HWY_NOINLINE void update_state(const Mamba3Dims& dims, float decay, const StepScratch& s,
                               float* ssm) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 4> four;
  const hn::CappedTag<float, 1> one;
  constexpr int kWide = wide_block<R>();
  const std::int64_t p = dims.head_dim;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  const auto few = static_cast<std::int64_t>(hn::Lanes(four));
  std::fill_n(s.read_out, R * p, 0.0f);
  for (std::int64_t n = 0; n < dims.state; n += kBlockRows) {
    const std::int64_t end = std::min(dims.state, n + kBlockRows);
    std::int64_t at = 0;
    for (; at + kWide * lanes <= p; at += kWide * lanes) {
      update_columns<R, kWide>(full, dims, decay, s, n, end, at, ssm);
    }
    for (; at + lanes <= p; at += lanes) {
      update_columns<R, 1>(full, dims, decay, s, n, end, at, ssm);
    }
    for (; at + few <= p; at += few) {
      update_columns<R, 1>(four, dims, decay, s, n, end, at, ssm);
    }
    for (; at < p; ++at) update_columns<R, 1>(one, dims, decay, s, n, end, at, ssm);
  }
}

void update_state_of_rank(const Mamba3Dims& dims, float decay, const StepScratch& s, float* ssm) {
  switch (dims.rank) {
    case 1:
      return update_state<1>(dims, decay, s, ssm);
    case 2:
      return update_state<2>(dims, decay, s, ssm);
    case 3:
      return update_state<3>(dims, decay, s, ssm);
    case 4:
      return update_state<4>(dims, decay, s, ssm);
    case 5:
      return update_state<5>(dims, decay, s, ssm);
    case 6:
      return update_state<6>(dims, decay, s, ssm);
    case 7:
      return update_state<7>(dims, decay, s, ssm);
    default:
      return update_state<8>(dims, decay, s, ssm);
  }
}

// out [r, p] = weight * x * mimo_x, or weight * x.
void scale_x(const Mamba3Dims& dims, const float* x, const float* mimo_x, float weight,
             float* out) {
  const std::int64_t p = dims.head_dim;
  for (std::int64_t r = 0; r < dims.rank; ++r) {
    for_lanes<float>(p, [&](auto d, std::int64_t i) HWY_ATTR {
      auto v = hn::LoadU(d, x + i);
      if (mimo_x != nullptr) v = hn::Mul(v, hn::LoadU(d, mimo_x + r * p + i));
      hn::StoreU(hn::Mul(hn::Set(d, weight), v), d, out + r * p + i);
    });
  }
}

// Ranks of rows [r, n], `stride` apart, to the interleaved layout of StepScratch.
void interleave(const float* rows, std::int64_t stride, const Mamba3Dims& dims, float* out) {
  for (std::int64_t r = 0; r < dims.rank; r += 4) {
    const float* from = rows + r * stride;
    float* to = out + r * dims.state;
    const std::int64_t width = std::min<std::int64_t>(dims.rank - r, 4);
    for_lanes<float>(dims.state, [&](auto d, std::int64_t i) HWY_ATTR {
      const auto row = [&](std::int64_t j) HWY_ATTR { return hn::LoadU(d, from + j * stride + i); };
      if (width == 1) return hn::StoreU(row(0), d, to + i);
      if (width == 2) return hn::StoreInterleaved2(row(0), row(1), d, to + 2 * i);
      if (width == 3) return hn::StoreInterleaved3(row(0), row(1), row(2), d, to + 3 * i);
      hn::StoreInterleaved4(row(0), row(1), row(2), row(3), d, to + 4 * i);
    });
  }
}

// The rows of one head: the previous K out of the state, the new one into it, Q.
void prepare_rows(const Mamba3StepArgs& args, std::int64_t head, float* k, const StepScratch& s) {
  const Mamba3Dims& dims = args.dims;
  const std::int64_t n = dims.state;
  const std::int64_t k_stride = dims.heads * n;
  k += head * n;
  interleave(k, k_stride, dims, s.k_previous);
  for (std::int64_t r = 0; r < dims.rank; ++r) {
    const std::int64_t bias = (head * dims.rank + r) * n;
    bias_rotate_row(dims, s.normed_b + r * n, args.params.in_b_bias + bias, s.cosine, s.sine,
                    k + r * k_stride);
    bias_rotate_row(dims, s.normed_c + r * n, args.params.out_c_bias + bias, s.cosine, s.sine,
                    s.q + r * n);
  }
  interleave(k, k_stride, dims, s.k_now);
  interleave(s.q, n, dims, s.q_now);
}

void step_head(const Mamba3StepArgs& args, std::int64_t row, std::int64_t head,
               const StepScratch& s) {
  const Mamba3Dims& dims = args.dims;
  const Mamba3Columns& in = args.columns;
  const std::int64_t p = dims.head_dim;
  const std::int64_t from = row * in.row_stride;
  const std::int64_t slot = args.slots[row];
  const float* x = in.x + from + head * p;
  const TokenScalars scalars =
      token_scalars(dims, in.dt_raw[from + head], args.params.dt_bias[head],
                    in.decay_raw[from + head], in.trap_raw[from + head]);
  const double decay = std::exp(scalars.log_decay);

  advance_phases(s.half_tanh, scalars.turning, dims.angles,
                 args.states.turns + slot * args.states.turns_stride + head * dims.angles, s.cosine,
                 s.sine);
  prepare_rows(args, head, args.states.k + slot * args.states.k_stride, s);
  const GateArgs gate = gate_args(dims, args.params, head, x, in.z + from + head * p);
  float* v = args.states.v + slot * args.states.v_stride + head * p;
  scale_x(dims, v, gate.mimo_x, static_cast<float>(scalars.carry * decay), s.x_carry);
  scale_x(dims, x, gate.mimo_x, static_cast<float>(scalars.now), s.x_now);
  std::copy_n(x, p, v);
  update_state_of_rank(dims, static_cast<float>(decay), s,
                       args.states.ssm + slot * args.states.ssm_stride + head * p * dims.state);
  gate_row(dims, gate, s.read_out, p, args.y.row(row) + head * p);
}

// Heads [begin, end) of one row.
void step_heads(const Mamba3StepArgs& args, std::int64_t row, std::int64_t begin, std::int64_t end,
                const StepScratch& s) {
  const Mamba3Dims& dims = args.dims;
  const std::int64_t from = row * args.columns.row_stride;
  const std::int64_t heads_per_group = dims.heads / dims.groups;
  turn_rates(dims, args.columns.angle_raw, from, s.half_tanh);
  for (std::int64_t head = begin; head < end; ++head) {
    if (head == begin || head % heads_per_group == 0) {
      for (std::int64_t r = 0; r < dims.rank; ++r) {
        const std::int64_t at = (r * dims.groups + head / heads_per_group) * dims.state;
        norm_row(args.columns.in_b + from + at, args.params.in_b_norm, dims.state,
                 s.normed_b + r * dims.state);
        norm_row(args.columns.out_c + from + at, args.params.out_c_norm, dims.state,
                 s.normed_c + r * dims.state);
      }
    }
    step_head(args, row, head, s);
  }
}

}  // namespace
}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(step_heads);

// Enough tasks to keep all threads busy, few enough that a task prepares B and C for many heads.
constexpr std::int64_t kTasksPerThread = 2;

}  // namespace

void mamba3_step_cpu(const Mamba3StepArgs& args, Context& ctx) {
  const auto rows = static_cast<std::int64_t>(args.slots.size());
  const std::int64_t heads = args.dims.heads;
  const std::int64_t workers = ctx.threads();
  const std::int64_t blocks_per_row =
      std::clamp<std::int64_t>((kTasksPerThread * workers + rows - 1) / rows, 1, heads);
  const std::int64_t heads_per_task = (heads + blocks_per_row - 1) / blocks_per_row;
  const std::int64_t tasks_per_row = (heads + heads_per_task - 1) / heads_per_task;

  ArenaScope scope(ctx.workspace());
  auto* scratch = scope.allocate<StepScratch>(workers);
  for (std::int64_t i = 0; i < workers; ++i) scratch[i] = take_step_scratch(scope, args.dims);
  const auto kernel = HWY_DYNAMIC_DISPATCH(step_heads);
  ctx.pool().run(rows * tasks_per_row, [&](std::int64_t task, int worker) {
    const std::int64_t begin = task % tasks_per_row * heads_per_task;
    kernel(args, task / tasks_per_row, begin, std::min(heads, begin + heads_per_task),
           scratch[worker]);
  });
}

}  // namespace mamba3
#endif  // HWY_ONCE
