#include <algorithm>
#include <cstring>

#include "ops/mamba3_scan_backward/backward_kernels.h"
#include "ops/mamba3_scan_backward/token_scalars_backward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/mamba3_scan_backward/mamba3_scan_backward_cpu.cpp"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/mamba3_scan_backward/backward_products-inl.h"
#include "ops/mamba3_scan_backward/backward_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

void copy_rows(const float* from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns,
               float* to, std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * to_stride, from + i * from_stride,
                static_cast<std::size_t>(columns) * sizeof(float));
  }
}

// The state of one head that a part starts from.
struct HeadStart {
  const std::uint32_t* turns;  // [s]
  const float* ssm;            // [n, p]
  const float* k;              // [r, n] rows k_stride apart
  const float* v;              // [p]
  std::int64_t k_stride;
};

// The gradients of one head of one slot.
struct HeadGradients {
  float* angle;  // [s]
  float* ssm;    // [n, p]
  float* k;      // [r, n] rows k_stride apart
  float* v;      // [p]
  std::int64_t k_stride;
};

// One head's walk over one part.
class HeadWalk {
 public:
  HeadWalk(const BackwardJob& job, const BackwardPart& part, std::int64_t head, int worker)
      : job_(job),
        dims_(job.args.dims),
        params_(job.args.params),
        sizes_(job.sizes.chunk),
        part_(part),
        head_(head),
        stride_(job.args.columns.row_stride),
        chunks_((part.end - part.begin + sizes_.tokens - 1) / sizes_.tokens),
        carver_(job.scratch + static_cast<std::size_t>(worker) * job.scratch_bytes),
        scratch_(dims_, job.sizes, carver_),
        chunk_(scratch_.chunk),
        sums_(dims_,
              job.head_sums + (part.sequence * dims_.heads + head) * HeadSums::elements(dims_)) {}

  // To the state after the part.
  void advance() {
    enter();
    ChunkInputs in;
    for (std::int64_t i = 0; i < chunks_; ++i) {
      in = key_inputs(i);
      prepare_keys(in, i + 1 < chunks_, scratch_.turns);
      fold_rows(sizes_, chunk_.k, chunk_.x_state, in.tokens * sizes_.rank,
                chunk_.decay[in.tokens - 1], scratch_.states, scratch_.states);
    }
    const std::int64_t at = part_.after * dims_.heads + head_;
    std::copy_n(scratch_.turns, dims_.angles, job_.stored.turns + at * dims_.angles);
    copy_rows(scratch_.states, sizes_.p_stride, sizes_.n, sizes_.p,
              job_.stored.ssm + at * sizes_.n * sizes_.p, sizes_.p);
    copy_rows(chunk_.k + (in.tokens - 1) * sizes_.rank * sizes_.n_stride, sizes_.n_stride,
              sizes_.rank, sizes_.n,
              job_.stored.k + (part_.after * dims_.rank * dims_.heads + head_) * sizes_.n,
              dims_.heads * sizes_.n);
  }

  void walk_back(bool first_of_block) {
    add_ = !first_of_block;
    replay();
    if (part_.fresh) std::fill_n(sums_.dt_bias, HeadSums::elements(dims_), 0.0f);
    const HeadGradients grads = head_gradients();
    copy_rows(grads.ssm, sizes_.p, sizes_.n, sizes_.p, scratch_.grad_state, sizes_.p_stride);
    turn_grad_state();
    std::copy_n(grads.angle, dims_.angles, scratch_.phase);
    for (std::int64_t i = chunks_ - 1; i >= 0; --i) chunk_back(i, grads);
    leave(grads);
    copy_rows(scratch_.grad_state, sizes_.p_stride, sizes_.n, sizes_.p, grads.ssm, sizes_.p);
    std::copy_n(scratch_.phase, dims_.angles, grads.angle);
  }

 private:
  ChunkInputs inputs(std::int64_t chunk) const {
    const Mamba3Columns& columns = job_.args.columns;
    const TokenBuffers& tokens = job_.slab.tokens;
    const std::int64_t begin = part_.begin + chunk * sizes_.tokens;
    const std::int64_t index = part_.offset + chunk * sizes_.tokens;
    const std::int64_t group = head_ / (dims_.heads / dims_.groups);
    const std::int64_t shared = (index * dims_.rank * dims_.groups + group) * dims_.state;
    ChunkInputs in;
    in.tokens = std::min(part_.end - begin, sizes_.tokens);
    in.head = head_;
    in.scalars = tokens.scalars + head_ * tokens.capacity + index;
    in.half_tanh = tokens.half_tanh + index * dims_.angles;
    in.finite_angles = tokens.finite_angles + index;
    in.in_b = tokens.in_b + shared;
    in.out_c = tokens.out_c + shared;
    in.x = columns.x + begin * stride_ + head_ * dims_.head_dim;
    in.z = columns.z + begin * stride_ + head_ * dims_.head_dim;
    // Where the chunk's rows of x and z get their gradients.
    in.y_stride = job_.args.grad_columns.row_stride;
    in.y = job_.args.grad_columns.z + begin * in.y_stride + head_ * dims_.head_dim;
    return in;
  }

  // Of a chunk whose z is not read: nothing but x is fetched ahead.
  ChunkInputs key_inputs(std::int64_t chunk) const {
    ChunkInputs in = inputs(chunk);
    in.z = in.x;
    in.y_stride = 0;
    return in;
  }

  // What the chunk before will read and write of its token t: rows are far apart.
  void fetch_before(std::int64_t index, std::int64_t t) const {
    if (index == 0) return;
    const std::int64_t token = part_.begin + (index - 1) * sizes_.tokens + t;
    const Mamba3Columns& columns = job_.args.columns;
    const Mamba3ColumnGradients& grads = job_.args.grad_columns;
    const std::int64_t at = head_ * sizes_.p;
    const float* const rows[] = {columns.x + token * stride_ + at, columns.z + token * stride_ + at,
                                 job_.args.grad_y.row(token) + at,
                                 grads.x + token * grads.row_stride + at,
                                 grads.z + token * grads.row_stride + at};
    constexpr std::int64_t kLineFloats = 16;
    for (const float* row : rows) {
      for (std::int64_t i = 0; i < sizes_.p; i += kLineFloats) hwy::Prefetch(row + i);
    }
  }

  HeadStart head_start() const {
    const std::int64_t n = dims_.state;
    const std::int64_t p = dims_.head_dim;
    if (part_.start < 0) {
      const Mamba3States& states = job_.args.states;
      return {states.turns + part_.slot * states.turns_stride + head_ * dims_.angles,
              states.ssm + part_.slot * states.ssm_stride + head_ * n * p,
              states.k + part_.slot * states.k_stride + head_ * n,
              states.v + part_.slot * states.v_stride + head_ * p, dims_.heads * n};
    }
    const std::int64_t at = part_.start * dims_.heads + head_;
    return {job_.stored.turns + at * dims_.angles, job_.stored.ssm + at * n * p,
            job_.stored.k + (part_.start * dims_.rank * dims_.heads + head_) * n,
            job_.args.columns.x + (part_.begin - 1) * stride_ + head_ * p, dims_.heads * n};
  }

  HeadGradients head_gradients() const {
    const Mamba3StateGradients& grads = job_.args.grad_states;
    const std::int64_t n = dims_.state;
    const std::int64_t p = dims_.head_dim;
    return {grads.angle + part_.slot * grads.angle_stride + head_ * dims_.angles,
            grads.ssm + part_.slot * grads.ssm_stride + head_ * n * p,
            grads.k + part_.slot * grads.k_stride + head_ * n,
            grads.v + part_.slot * grads.v_stride + head_ * p, dims_.heads * n};
  }

  // The state and turns that the part starts from, with the carried term of the token before in it.
  void enter() {
    const HeadStart start = head_start();
    const auto carry = static_cast<float>(inputs(0).scalars[0].carry);
    copy_rows(start.ssm, sizes_.p, sizes_.n, sizes_.p, scratch_.states, sizes_.p_stride);
    std::copy_n(start.turns, dims_.angles, scratch_.turns);
    for (std::int64_t r = 0; r < sizes_.rank; ++r) {
      scale_x(dims_, params_, head_, r, start.v, carry, chunk_.x_carried + r * sizes_.p_stride);
    }
    copy_rows(start.k, start.k_stride, sizes_.rank, sizes_.n, chunk_.k_carried, sizes_.n_stride);
    chunk_.state = scratch_.states;
    add_carried(sizes_, chunk_, 0, sizes_.n);
  }

  // K, X and their weights.
  void prepare_keys(const ChunkInputs& in, bool followed, std::uint32_t* turns) {
    chunk_phases(dims_, in, stride_, turns, chunk_);
    chunk_rows(dims_, sizes_, in, chunk_, in.in_b, params_.in_b_bias, chunk_.k);
    weigh_keys(in, followed);
  }

  // A chunk that another one follows hands on its last token's product with what the next token
  // adds to it, so no term is carried between them.
  void weigh_keys(const ChunkInputs& in, bool followed) {
    chunk_scalars(sizes_, in, chunk_);
    if (followed) chunk_.to_last[in.tokens - 1] += static_cast<float>(in.scalars[in.tokens].carry);
    chunk_x(dims_, params_, sizes_, in, stride_, chunk_);
  }

  // What the walk back needs of all chunks: the states at their starts, rotations and keys.
  void replay() {
    enter();
    for (std::int64_t i = 0; i < chunks_; ++i) {
      const ChunkInputs in = key_inputs(i);
      const bool followed = i + 1 < chunks_;
      open_chunk(i);
      prepare_keys(in, followed, scratch_.turns);
      if (!followed) return;
      const float* state = scratch_.states + i * sizes_.state_elements;
      fold_rows(sizes_, chunk_.k, chunk_.x_state, in.tokens * sizes_.rank,
                chunk_.decay[in.tokens - 1], state,
                scratch_.states + (i + 1) * sizes_.state_elements);
    }
  }

  // Where a chunk's rotations and keys are kept.
  void open_chunk(std::int64_t index) {
    const std::int64_t rotations = sizes_.tokens * dims_.angles;
    chunk_.k = scratch_.keys + index * (sizes_.rows + kRowPadding) * sizes_.n_stride;
    chunk_.cosine = scratch_.rotations + 2 * index * rotations;
    chunk_.sine = chunk_.cosine + rotations;
  }

  void turn_grad_state() {
    transpose(scratch_.grad_state, sizes_.p_stride, sizes_.n, sizes_.p, scratch_.grad_state_t,
              sizes_.n_stride);
  }

  void chunk_back(std::int64_t index, const HeadGradients& grads) {
    const ChunkInputs in = inputs(index);
    const bool last = index + 1 == chunks_;
    const std::int64_t rows = in.tokens * sizes_.rank;
    const float* state = scratch_.states + index * sizes_.state_elements;
    open_chunk(index);
    weigh_keys(in, !last);
    read_out(in, state, rows);
    const std::int64_t begin = part_.begin + index * sizes_.tokens;
    gate_back(in, begin);
    transpose(chunk_.x, sizes_.p_stride, rows, sizes_.p, scratch_.x_t, sizes_.row_stride);
    lower_product(sizes_, chunk_, rows, scratch_.grad_o, sizes_.p_stride, scratch_.x_t, sizes_.p,
                  scratch_.grad_scores);
    weigh_grad_scores(sizes_, in, scratch_);
    grad_x_rows(sizes_, scratch_, rows);
    transpose(state, sizes_.p_stride, sizes_.n, sizes_.p, scratch_.state_t, sizes_.n_stride);
    grad_q_rows(sizes_, scratch_, rows);
    grad_k_rows(sizes_, scratch_, rows);
    const float decay = chunk_.decay[in.tokens - 1];
    const double end_decay =
        decay * dot_rows(scratch_.grad_state, state, sizes_.p_stride, sizes_.n, sizes_.p);
    fold_rows(sizes_, chunk_.q, scratch_.grad_o_start, rows, decay, scratch_.grad_state,
              scratch_.grad_state);
    turn_grad_state();
    if (last) take_last(in, grads);
    x_back(in, begin, last, grads);
    tokens_back(in, index, end_decay);
    rows_back(in, index);
  }

  void read_out(const ChunkInputs& in, const float* state, std::int64_t rows) {
    transpose(chunk_.k, sizes_.n_stride, rows, sizes_.n, chunk_.k_t, sizes_.row_stride);
    chunk_rows(dims_, sizes_, in, chunk_, in.out_c, params_.out_c_bias, chunk_.q);
    chunk_decays(sizes_, in, scratch_);
    lower_product(sizes_, chunk_, rows, chunk_.q, sizes_.n_stride, chunk_.k_t, sizes_.n,
                  scratch_.raw_scores);
    weigh_scores(sizes_, scratch_, rows);
    read_outs(sizes_, scratch_, state, rows);
  }

  // grad_z, grad_o, and what hangs on grad_o alone.
  void gate_back(const ChunkInputs& in, std::int64_t begin) {
    const ConstMatrix& grad_y = job_.args.grad_y;
    double skip = 0;
    for (std::int64_t t = 0; t < in.tokens; ++t) {
      const std::int64_t row = t * sizes_.rank;
      const GateArgs gate =
          gate_args(dims_, params_, head_, in.x + t * stride_, in.z + t * stride_);
      float* grad_o = scratch_.grad_o + row * sizes_.p_stride;
      gate_row_backward(dims_, gate, grad_y.row(begin + t) + head_ * dims_.head_dim,
                        sizes_.p_stride, chunk_.y + row * sizes_.p_stride, grad_o,
                        in.y + t * in.y_stride, sums_);
      skip += dot_rows(grad_o, chunk_.x + row * sizes_.p_stride, sizes_.p_stride, sizes_.rank,
                       sizes_.p);
      scratch_.log_start[t] = dot_rows(grad_o, scratch_.from_start + row * sizes_.p_stride,
                                       sizes_.p_stride, sizes_.rank, sizes_.p);
      for (std::int64_t r = 0; r < sizes_.rank; ++r) {
        const std::int64_t at = (row + r) * sizes_.p_stride;
        for_lanes<float>(sizes_.p, [&](auto d, std::int64_t i) HWY_ATTR {
          const auto scaled =
              hn::Mul(hn::LoadU(d, scratch_.grad_o + at + i), hn::Set(d, chunk_.decay[t]));
          hn::StoreU(scaled, d, scratch_.grad_o_start + at + i);
        });
      }
    }
    *sums_.skip += static_cast<float>(skip);
  }

  // The state's k is that of the last token.
  void take_last(const ChunkInputs& in, const HeadGradients& grads) {
    for (std::int64_t r = 0; r < sizes_.rank; ++r) {
      const std::int64_t row = (in.tokens - 1) * sizes_.rank + r;
      add_row(grads.k + r * grads.k_stride, sizes_.n, scratch_.grad_k + row * sizes_.n_stride);
    }
  }

  void x_back(const ChunkInputs& in, std::int64_t begin, bool last, const HeadGradients& grads) {
    const Mamba3ColumnGradients& columns = job_.args.grad_columns;
    for (std::int64_t t = in.tokens - 1; t >= 0; --t) {
      float* grad_x = columns.x + (begin + t) * columns.row_stride + head_ * sizes_.p;
      if (last && t + 1 == in.tokens) {
        std::copy_n(grads.v, sizes_.p, grad_x);
      } else {
        std::fill_n(grad_x, sizes_.p, 0.0f);
      }
      for (std::int64_t r = 0; r < sizes_.rank; ++r) {
        const std::int64_t at = (t * sizes_.rank + r) * sizes_.p_stride;
        scratch_.end[t * sizes_.rank + r] = static_cast<float>(
            dot_rows(chunk_.x + at, scratch_.grad_end + at, sizes_.p_stride, 1, sizes_.p));
        spread_row_backward(dims_, params_, head_, r, in.x + t * stride_, scratch_.grad_x + at,
                            scratch_.grad_o + at, sums_, grad_x);
      }
    }
  }

  // Rotation, phases and scalars, from the last token to the first. A token's own product enters
  // the state with the weight `now`, and once more with the next token's `carry`, so each token
  // waits for the one before it.
  void tokens_back(const ChunkInputs& in, std::int64_t index, double end_decay) {
    const std::int64_t last = in.tokens - 1;
    const float* to_end = scratch_.decays + last * sizes_.row_stride;
    // A decay acts on what it leaves inside the chunk, in the read-outs of what came before the
    // chunk, and in the state at the end.
    double ends = end_decay;
    double starts = 0;
    for (std::int64_t t = last; t >= 0; --t) {
      starts += scratch_.log_start[t];
      scratch_.log_start[t] = starts;
    }
    for (std::int64_t t = 0; t <= last; ++t) {
      scratch_.log_inside[t] += scratch_.log_start[t] + ends;
      ends += chunk_.to_last[t] * end_of(t);
    }
    for (std::int64_t t = last; t >= 0; --t) {
      fetch_before(index, t);
      TokenScalarGradients grads;
      grads.log_decay = scratch_.log_inside[t];
      double source = t == last ? end_of(t) : to_end[t * sizes_.rank] * end_of(t);
      for (std::int64_t r = 0; r < sizes_.rank; ++r) source += scratch_.later[t * sizes_.rank + r];
      grads.now = scratch_.now[t] + source;
      grads.turning = turn_back(in, index, t);
      finish_token(source);
      waits_ = true;
      waiting_ = grads;
      waiting_token_ = part_.begin + index * sizes_.tokens + t;
      waiting_scalars_ = in.scalars + t;
    }
  }

  double end_of(std::int64_t t) const {
    double sum = 0;
    for (std::int64_t r = 0; r < sizes_.rank; ++r) sum += scratch_.end[t * sizes_.rank + r];
    return sum;
  }

  // Turns one token's K and Q back. Returns the gradient of what its phases move by.
  double turn_back(const ChunkInputs& in, std::int64_t index, std::int64_t t) {
    const float* cosine = chunk_.cosine + t * dims_.angles;
    const float* sine = chunk_.sine + t * dims_.angles;
    for (std::int64_t row = t * sizes_.rank; row < (t + 1) * sizes_.rank; ++row) {
      const std::int64_t at = row * sizes_.n_stride;
      unrotate_row(dims_, chunk_.k + at, cosine, sine, scratch_.grad_k + at, scratch_.phase);
      unrotate_row(dims_, chunk_.q + at, cosine, sine, scratch_.grad_q + at, scratch_.phase);
    }
    const SlabBuffers& slab = job_.slab;
    float* out = slab.grad_phase + block() * slab.phase_stride +
                 (part_.offset + index * sizes_.tokens + t) * dims_.angles;
    return phase_backward(in.half_tanh + t * dims_.angles, in.scalars[t].turning, dims_.angles,
                          scratch_.phase, out, add_);
  }

  void rows_back(const ChunkInputs& in, std::int64_t index) {
    const SlabBuffers& slab = job_.slab;
    const std::int64_t out =
        block() * slab.row_stride + (part_.offset + index * sizes_.tokens) * sizes_.rank * sizes_.n;
    emit_rows(sizes_, in.tokens, scratch_.grad_k, sums_.in_b_bias, slab.grad_b + out, add_);
    emit_rows(sizes_, in.tokens, scratch_.grad_q, sums_.out_c_bias, slab.grad_c + out, add_);
  }

  std::int64_t block() const { return head_ / job_.sizes.heads_per_block; }

  // The token that waits, whose carry has this gradient.
  void finish_token(double grad_carry) {
    if (!waits_) return;
    waiting_.carry = grad_carry;
    const Mamba3Columns& columns = job_.args.columns;
    const std::int64_t from = waiting_token_ * columns.row_stride + head_;
    const RawScalarGradients raw = token_scalars_backward(
        dims_, columns.dt_raw[from], params_.dt_bias[head_], columns.decay_raw[from],
        columns.trap_raw[from], *waiting_scalars_, waiting_);
    const Mamba3ColumnGradients& grads = job_.args.grad_columns;
    const std::int64_t to = waiting_token_ * grads.row_stride + head_;
    grads.dt_raw[to] = raw.dt_raw;
    grads.decay_raw[to] = raw.decay_raw;
    grads.trap_raw[to] = raw.trap_raw;
    *sums_.dt_bias += raw.dt_raw;
  }

  // The carried term of the token before the part: state += carry * sum of X K^T.
  void leave(const HeadGradients& grads) {
    const HeadStart start = head_start();
    const auto carry = static_cast<float>(inputs(0).scalars[0].carry);
    float* k = chunk_.k;
    float* x = chunk_.x_state;
    copy_rows(start.k, start.k_stride, sizes_.rank, sizes_.n, k, sizes_.n_stride);
    for (std::int64_t r = 0; r < sizes_.rank; ++r) {
      scale_x(dims_, params_, head_, r, start.v, 1.0f, x + r * sizes_.p_stride);
    }
    float* grad_x = scratch_.grad_end;
    plain_product(k, sizes_.n_stride, scratch_.grad_state, sizes_.p_stride, sizes_.rank, sizes_.p,
                  sizes_.n, grad_x);
    finish_token(dot_rows(x, grad_x, sizes_.p_stride, sizes_.rank, sizes_.p));
    float* grad_k = scratch_.grad_k;
    plain_product(x, sizes_.p_stride, scratch_.grad_state_t, sizes_.n_stride, sizes_.rank, sizes_.n,
                  sizes_.p, grad_k);
    std::fill_n(grads.v, sizes_.p, 0.0f);
    for (std::int64_t r = 0; r < sizes_.rank; ++r) {
      scale_row(grad_x + r * sizes_.p_stride, carry, sizes_.p, grad_x + r * sizes_.p_stride);
      spread_row_backward(dims_, params_, head_, r, start.v, grad_x + r * sizes_.p_stride, nullptr,
                          sums_, grads.v);
      scale_row(grad_k + r * sizes_.n_stride, carry, sizes_.n, grads.k + r * grads.k_stride);
    }
  }

  static void scale_row(const float* from, float factor, std::int64_t count, float* to) {
    for_lanes<float>(count, [&](auto d, std::int64_t i) HWY_ATTR {
      hn::StoreU(hn::Mul(hn::LoadU(d, from + i), hn::Set(d, factor)), d, to + i);
    });
  }

  const BackwardJob& job_;
  const Mamba3Dims& dims_;
  const Mamba3Params& params_;
  const ChunkSizes& sizes_;
  const BackwardPart& part_;
  std::int64_t head_;
  std::int64_t stride_;  // of the columns
  std::int64_t chunks_;
  Carver carver_;
  BackwardScratch scratch_;
  ChunkScratch& chunk_;
  HeadSums sums_;
  bool add_ = false;  // what is summed over heads holds an earlier head of the block
  bool waits_ = false;
  TokenScalarGradients waiting_;
  std::int64_t waiting_token_ = 0;
  const TokenScalars* waiting_scalars_ = nullptr;
};

void advance_part_of(const BackwardJob& job, const BackwardPart& part, std::int64_t head,
                     int worker) {
  HeadWalk(job, part, head, worker).advance();
}

void walk_part_of(const BackwardJob& job, const BackwardPart& part, std::int64_t block,
                  int worker) {
  const std::int64_t first = block * job.sizes.heads_per_block;
  for (std::int64_t i = 0; i < job.sizes.heads_per_block; ++i) {
    HeadWalk(job, part, first + i, worker).walk_back(i == 0);
  }
}

// The sum over a group's heads of one row of B or C, through the norm.
void reduce_row(const BackwardJob& job, const float* by_block, std::int64_t group, const float* raw,
                const float* weight, float* out, float* norm_sum) {
  const std::int64_t n = job.args.dims.state;
  const std::int64_t blocks = job.sizes.blocks / job.args.dims.groups;
  const float* from = by_block + group * blocks * job.slab.row_stride;
  std::copy_n(from, n, out);
  for (std::int64_t block = 1; block < blocks; ++block) {
    add_row(from + block * job.slab.row_stride, n, out);
  }
  norm_row_backward(raw, weight, inverse_rms(raw, n), n, out, norm_sum);
}

void reduce_angles(const BackwardJob& job, std::int64_t index, float* out) {
  const std::int64_t s = job.args.dims.angles;
  const SlabBuffers& slab = job.slab;
  const double* half_tanh = slab.tokens.half_tanh + index * s;
  for_lanes<double>(s, [&](auto d, std::int64_t i) HWY_ATTR {
    const hn::Rebind<float, decltype(d)> df;
    auto sum = hn::Zero(df);
    for (std::int64_t block = 0; block < job.sizes.blocks; ++block) {
      const float* from = slab.grad_phase + block * slab.phase_stride + index * s;
      sum = hn::Add(sum, hn::LoadU(df, from + i));
    }
    const auto half = hn::LoadU(d, half_tanh + i);
    const auto one = hn::Set(d, 1.0);
    const auto tanh = hn::Add(half, half);
    const auto slope =
        hn::Mul(hn::Set(d, std::numbers::pi), hn::Mul(hn::Sub(one, tanh), hn::Add(one, tanh)));
    hn::StoreU(hn::DemoteTo(df, hn::Mul(hn::PromoteTo(d, sum), slope)), df, out + i);
  });
}

void reduce_chunk_of(const BackwardJob& job, const BackwardPart& part, std::int64_t chunk) {
  const Mamba3Dims& dims = job.args.dims;
  const Mamba3Columns& columns = job.args.columns;
  const Mamba3ColumnGradients& grads = job.args.grad_columns;
  const std::int64_t n = dims.state;
  const std::int64_t c = job.sizes.chunk.tokens;
  float* b_sum = job.slab.norm_sums + (part.chunk + chunk) * 2 * n;
  float* c_sum = b_sum + n;
  std::fill_n(b_sum, 2 * n, 0.0f);
  const std::int64_t begin = part.begin + chunk * c;
  const std::int64_t end = std::min(part.end, begin + c);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t index = part.offset + t - part.begin;
    for (std::int64_t r = 0; r < dims.rank; ++r) {
      const std::int64_t from = (index * dims.rank + r) * n;
      for (std::int64_t group = 0; group < dims.groups; ++group) {
        const std::int64_t at = (r * dims.groups + group) * n;
        const std::int64_t raw = t * columns.row_stride + at;
        const std::int64_t to = t * grads.row_stride + at;
        reduce_row(job, job.slab.grad_b + from, group, columns.in_b + raw,
                   job.args.params.in_b_norm, grads.in_b + to, b_sum);
        reduce_row(job, job.slab.grad_c + from, group, columns.out_c + raw,
                   job.args.params.out_c_norm, grads.out_c + to, c_sum);
      }
    }
    if (dims.angle_columns() > 0) {
      reduce_angles(job, index, grads.angle_raw + t * grads.row_stride);
    }
  }
}

}  // namespace
}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(advance_part_of);
HWY_EXPORT(walk_part_of);
HWY_EXPORT(reduce_chunk_of);

}  // namespace

void advance_part(const BackwardJob& job, const BackwardPart& part, std::int64_t head, int worker) {
  HWY_DYNAMIC_DISPATCH(advance_part_of)(job, part, head, worker);
}

void walk_part(const BackwardJob& job, const BackwardPart& part, std::int64_t block, int worker) {
  HWY_DYNAMIC_DISPATCH(walk_part_of)(job, part, block, worker);
}

void reduce_chunk(const BackwardJob& job, const BackwardPart& part, std::int64_t chunk) {
  HWY_DYNAMIC_DISPATCH(reduce_chunk_of)(job, part, chunk);
}

}  // namespace mamba3
#endif  // HWY_ONCE
