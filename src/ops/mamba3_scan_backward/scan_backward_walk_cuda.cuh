// From the gradients of a chunk's read-outs and of the state behind it to those of its rows: x, K
// and Q, turned back, the phases, and what weighs and decays them.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_rows_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kMostRank = 8;

static_assert(kWarpLanes * odd_pitch(kWarpLanes) <= kTileFloats);  // scores in the tile

struct ChunkWalkMemory {
  int k_pitch;
  int x_pitch;
  int score_pitch;
  int temp_pitch;
  ChunkTerms* terms;  // [t]
  float* q;           // [rows, n]
  float* k;           // [rows, n]
  float* grad_o;      // [rows, p]; then, x again
  float* temp;        // [rows, the widest of the others]; at first, x [rows, p]
  float* scores;      // [rows, rows] weighted; then, the gradients of the raw ones
  float* tile;
  // Parts of the gradients of what belongs to tokens, by rows.
  float* own;      // [rows, r] of `now`: pairs of the token's own rows
  float* skip;     // [rows]
  float* later;    // [rows] of `source`: later tokens' scores
  float* end;      // [rows] of `source`: the state behind the chunk
  float* start;    // [rows] of the decays up to here: what the read-out takes from the start
  float* inside;   // [t] of the decay: scores that it lies between
  double* at_end;  // [1] of all decays: the state behind the chunk

  __host__ __device__ ChunkWalkMemory(const TokenSizes& sizes, int rows, SharedParts& parts) {
    k_pitch = odd_pitch(sizes.state);
    x_pitch = odd_pitch(sizes.head_dim);
    score_pitch = odd_pitch(rows);
    temp_pitch = k_pitch > x_pitch ? k_pitch : x_pitch;
    terms = parts.take<ChunkTerms>(rows);
    q = parts.take<float>(rows * k_pitch);
    k = parts.take<float>(rows * k_pitch);
    grad_o = parts.take<float>(rows * x_pitch);
    temp = parts.take<float>(rows * temp_pitch);
    scores = parts.take<float>(rows * score_pitch);
    tile = parts.take<float>(kTileFloats);
    own = parts.take<float>(rows * sizes.rank);
    skip = parts.take<float>(rows);
    later = parts.take<float>(rows);
    end = parts.take<float>(rows);
    start = parts.take<float>(rows);
    inside = parts.take<float>(rows);
    at_end = parts.take<double>(1);
  }
};

template <int kRows>
struct ChunkWalk {
  static constexpr int kThreads = kChunkThreads<kRows>;
  const BackwardJobCuda& job;
  const ChunkPlace& at;
  const ChunkWalkMemory& m;
  ThreadPlace own;
  int thread;
  int rank;
  int n;
  int p;
  HeadGate gate;

  __device__ ChunkWalk(const BackwardJobCuda& job_in, const ChunkPlace& at_in,
                       const ChunkWalkMemory& memory)
      : job(job_in),
        at(at_in),
        m(memory),
        thread(static_cast<int>(threadIdx.x)),
        rank(job.sizes.rank),
        n(job.sizes.state),
        p(job.sizes.head_dim),
        gate(head_gate(job.sizes, job.params, at.head)) {}

  __device__ void load() const {
    load_terms(job, at, m.terms);
    request_rows(job, at, job.grad_b, n, kRows, m.k_pitch, m.k);
    request_rows(job, at, job.grad_c, n, kRows, m.k_pitch, m.q);
    request_rows(job, at, job.grad_o, job.p_stride, kRows, m.x_pitch, m.grad_o);
    load_x(m.temp);
    __pipeline_wait_prior(0);
    if (thread >= kWarpLanes) return;
    double product = 0;
    const float* products = job.end_products + job.chunk_at(at.chunk, at.h) * job.end_parts;
    for (int i = thread; i < job.end_parts; i += kWarpLanes) product += products[i];
    product = warp_sum(product);
    if (thread == 0) *m.at_end = product;
  }

  __device__ void load_x(float* to) const {
    load_spread(job, at, kRows, to, [](int) { return 1.0f; });
  }

  // Scores, and the gradients of the raw ones, which wait for the place of the scores. tile: what
  // each score loses to the decays it lies between, without the source's weight.
  using Scores = Sums<kRows / kAcross>;
  __device__ Scores score_rows() const {
    Scores raw, grad;
    add_product_of_rows(raw, m.q + own.row * m.k_pitch, m.k_pitch, m.k + own.across * m.k_pitch,
                        m.k_pitch, whole_vectors(n));
    add_product_of_rows(grad, m.grad_o + own.row * m.x_pitch, m.x_pitch,
                        m.temp + own.across * m.x_pitch, m.x_pitch, whole_vectors(p));
    each_score([&](int i, int j, int row, int column) {
      const int reader = token_of(row);
      const int source = token_of(column);
      const bool is_inside = row < at.rows && column < at.rows;
      const ScoreWeight weight =
          is_inside ? score_weight(m.terms, reader, source) : ScoreWeight{0, 0};
      const float product = raw.at[i][j] * grad.at[i][j];
      m.scores[row * m.score_pitch + column] = weight.weight * raw.at[i][j];
      m.tile[row * m.score_pitch + column] = weight.decay * product;
      if (reader == source) m.own[row * rank + (column - source * rank)] = product;
      if (row == column) m.skip[row] = grad.at[i][j];
      grad.at[i][j] *= weight.weight;
    });
    return grad;
  }

  __device__ void store_score_gradients(const Scores& grads) const {
    each_score([&](int i, int j, int row, int column) {
      m.scores[row * m.score_pitch + column] = grads.at[i][j];
    });
  }

  // body(i, j, row, column) for this thread's scores.
  template <class Body>
  __device__ __forceinline__ void each_score(const Body& body) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < kRows / kAcross; ++j) {
        body(i, j, own.row + i, own.across + j * kAcross);
      }
    }
  }

  // Nothing is subtracted: a decay's gradient is a sum over the scores that it lies between.
  __device__ void sum_scores() const {
    sum_columns();
    __syncthreads();
    const int lane = thread % kWarpLanes;
    const float source = lane < at.rows ? m.terms[token_of(lane)].source : 0.0f;
    for (int t = thread / kWarpLanes; t < at.tokens; t += kThreads / kWarpLanes) {
      float sum = lane < t * rank ? m.tile[t * rank * m.score_pitch + lane] * source : 0.0f;
      for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      }
      if (lane == 0) m.inside[t] = sum;
    }
    if (thread >= kWarpLanes) return;
    const double skip = warp_sum(thread < at.rows ? m.skip[thread] : 0.0);
    if (thread == 0) sums()[job.places.skip] = static_cast<float>(skip);
  }

  // Each number of the tile becomes the sum of those from its row on.
  __device__ void sum_columns() const {
    if (thread >= at.rows) return;
    float sum = 0;
    for (int end = kRows; end > 0; end -= 2 * kBatch) {
      float values[2 * kBatch];
      float* from = m.tile + (end - 2 * kBatch) * m.score_pitch + thread;
#pragma unroll
      for (int i = 0; i < 2 * kBatch; ++i) values[i] = from[i * m.score_pitch];
#pragma unroll
      for (int i = 2 * kBatch - 1; i >= 0; --i) {
        sum += values[i];
        from[i * m.score_pitch] = sum;
      }
    }
    m.later[thread] = sum;
  }

  // grad x = to_end source K E + scores^T grad_o + skip grad_o, in temp.
  __device__ void x_rows() const {
    const StateMatrix state = at.state(job, job.ends);
    for (int panel = 0; panel < job.p_stride; panel += kPanel) {
      Sums<4> sums;
      add_state_product<kRows>(sums, own, m.k, m.k_pitch, state, panel, m.tile);
      const int column = panel + 4 * own.across;
      if (column >= job.p_stride) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = end_weight(own.row + i);
        for (int j = 0; j < 4; ++j) {
          sums.at[i][j] = fmaf(gate.skip, m.grad_o[(own.row + i) * m.x_pitch + column + j],
                               weight * sums.at[i][j]);
        }
      }
      add_transposed_product(sums, m.scores + own.row, m.score_pitch, m.grad_o + column, m.x_pitch,
                             token_of(own.row) * rank, at.rows);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_vector<4>(sums.at[i], m.temp + (own.row + i) * m.temp_pitch + column);
      }
    }
  }

  __device__ int token_of(int row) const {
    return job.by_rank.quotient(row);
  }

  // The weight of a row's product in the state behind the chunk.
  __device__ float end_weight(int row) const {
    if (row >= at.rows) return 0;
    const ChunkTerms& terms = m.terms[token_of(row)];
    return terms.to_end * terms.source;
  }

  __device__ void store_x() const {
    const std::int64_t in_row = std::int64_t{at.head} * p;
    const float* grad_v = nullptr;  // the state's v is the last token's x
    if (at.is_last) {
      grad_v = job.grad_states.v + job.slots[at.piece.sequence] * job.grad_states.v_stride + in_row;
    }
    for (int i = thread; i < at.tokens * p; i += kThreads) {
      const int t = job.by_head_dim.quotient(i);
      const int column = i - t * p;
      float grad = grad_v != nullptr && t + 1 == at.tokens ? grad_v[column] : 0.0f;
      for (int r = 0; r < rank; ++r) {
        grad += own_x(gate, r, column, m.temp[(t * rank + r) * m.temp_pitch + column]);
      }
      job.out.x.put(at.piece.begin + t, in_row + column, grad);
    }
    if (!job.sizes.mimo) return;
    for (int i = thread; i < rank * p; i += kThreads) {
      const int r = i / p;
      const int column = i - r * p;
      float sum = 0;
      for (int t = 0; t < at.tokens; ++t) {
        sum = fmaf(m.temp[(t * rank + r) * m.temp_pitch + column],
                   job.x.at(at.piece.begin + t, in_row + column), sum);
      }
      sums()[job.places.mimo_x + i] = sum;
    }
  }

  // temp += weight(row) rows state^T, where that product times the rows of `with` is left in `out`.
  template <class Weight>
  __device__ void add_state_part(const float* rows, const StateMatrix& state, const float* with,
                                 float* out, const Weight& weight) const {
    float products[4] = {};
    for (int panel = 0; panel < n; panel += kPanel) {
      Sums<4> sums;
      add_product_of_state_rows<kRows>(sums, own, rows, m.x_pitch, state, panel, m.tile);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = own.row + i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = panel + own.across + j * kAcross;
          if (column >= n) continue;
          products[i] = fmaf(sums.at[i][j], with[row * m.k_pitch + column], products[i]);
          float& place = m.temp[row * m.temp_pitch + column];
          place = fmaf(weight(row), sums.at[i][j], place);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      for (int lanes = kAcross / 2; lanes > 0; lanes /= 2) {
        products[i] += __shfl_xor_sync(0xffffffffu, products[i], lanes);
      }
      if (own.across == 0) out[own.row + i] = products[i];
    }
  }

  // grad Q = grad_scores K + decay grad_o G^T, in temp.
  __device__ void q_rows() const {
    for (int column = 4 * own.across; column < n; column += kPanel) {
      Sums<4> sums;
      add_product(sums, m.scores + own.row * m.score_pitch, m.score_pitch, m.k + column, m.k_pitch,
                  kRows);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_vector<4>(sums.at[i], m.temp + (own.row + i) * m.temp_pitch + column);
      }
    }
    add_state_part(m.grad_o, at.state(job, job.starts), m.q, m.start,
                   [&](int row) { return row < at.rows ? m.terms[token_of(row)].decay : 0.0f; });
  }

  // grad K = grad_scores^T Q + to_end source X E^T, in temp. x stands where grad_o was.
  __device__ void k_rows() const {
    for (int column = 4 * own.across; column < n; column += kPanel) {
      Sums<4> sums;
      add_transposed_product(sums, m.scores + own.row, m.score_pitch, m.q + column, m.k_pitch,
                             token_of(own.row) * rank, at.rows);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_vector<4>(sums.at[i], m.temp + (own.row + i) * m.temp_pitch + column);
      }
    }
    add_state_part(m.grad_o, at.state(job, job.ends), m.k, m.end,
                   [&](int row) { return end_weight(row); });
    if (!at.is_last) return;  // the state's K is the last token's
    __syncthreads();
    const float* from = job.grad_states.k + job.slots[at.piece.sequence] * job.grad_states.k_stride;
    for (int i = thread; i < rank * n; i += kThreads) {
      const int r = i / n;
      const int column = i - r * n;
      m.temp[(at.rows - rank + r) * m.temp_pitch + column] +=
          from[(std::int64_t{r} * job.sizes.heads + at.head) * n + column];
    }
  }

  // Turns the gradients in temp of `rows` back, for the sums over heads and that of the bias; those
  // of the tokens' phases are assigned, or added to those of the other rows.
  __device__ void turn_back(const float* rows, bool add, float* out, float* bias) const {
    const int angles = job.sizes.angles;
    const int half = (n + 1) / 2;
    const int count = at.tokens * half;
    const float* rotations = job.rotations + at.token_at(job, 0) * 2 * angles;
    const float* phases = job.grad_phase + at.token_at(job, 0) * angles;
    out += at.token_at(job, 0) * rank * n;
    for (int first = thread; first < count; first += kBatch * kThreads) {
      Turn turns[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int t = job.by_pairs.quotient(first + i * kThreads);
        const int pair = first + i * kThreads - t * half;
        turns[i] = {0, 0, 0};
        if (t >= at.tokens || pair >= angles) continue;
        const float* cosine = rotations + t * 2 * angles + pair;
        turns[i] = {cosine[0], cosine[angles], 0};
        if (add) turns[i].phase = phases[t * angles + pair];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int t = job.by_pairs.quotient(first + i * kThreads);
        if (t < at.tokens) turn_back(rows, t, first + i * kThreads - t * half, turns[i], out);
      }
    }
    __syncthreads();
    for (int i = thread; i < rank * n; i += kThreads) {
      const int r = i / n;
      float sum = 0;
#pragma unroll 8
      for (int t = 0; t < at.tokens; ++t) sum += m.temp[(t * rank + r) * m.temp_pitch + i - r * n];
      bias[i] = sum;
    }
    __syncthreads();
  }

  struct Turn {
    float cosine;
    float sine;
    float phase;
  };

  // One pair of a token's rows. out: the chunk's.
  __device__ __forceinline__ void turn_back(const float* rows, int t, int pair, const Turn& turn,
                                            float* out) const {
    const int angles = job.sizes.angles;
    const int a = job.sizes.mimo ? pair : 2 * pair;
    const int b = job.sizes.mimo ? n / 2 + pair : 2 * pair + 1;
    float phase = turn.phase;
    for (int row = t * rank; row < (t + 1) * rank; ++row) {
      float* to = out + row * n;
      float* grad = m.temp + row * m.temp_pitch;
      if (pair < angles) {
        const float grad_a = grad[a], grad_b = grad[b];
        phase += grad_b * rows[row * m.k_pitch + a] - grad_a * rows[row * m.k_pitch + b];
        grad[a] = fmaf(grad_b, turn.sine, grad_a * turn.cosine);
        grad[b] = fmaf(-grad_a, turn.sine, grad_b * turn.cosine);
      }
      to[a] = grad[a];
      if (b < n) to[b] = grad[b];
    }
    if (pair < angles) job.grad_phase[at.token_at(job, t) * angles + pair] = phase;
  }

  // A phase is that of all tokens behind, too.
  __device__ void sum_phases() const {
    const int angles = job.sizes.angles;
    for (int i = thread; i < angles; i += kThreads) {
      float sum = 0;
      float* phases = job.grad_phase + at.token_at(job, 0) * angles + i;
      for (int end = at.tokens; end > 0; end -= 2 * kBatch) {
        float values[2 * kBatch];
#pragma unroll
        for (int j = 0; j < 2 * kBatch; ++j)
          values[j] = j < end ? phases[(end - 1 - j) * angles] : 0;
#pragma unroll
        for (int j = 0; j < 2 * kBatch; ++j) {
          sum += values[j];
          if (j < end) phases[(end - 1 - j) * angles] = sum;
        }
      }
      job.phases[job.chunk_at(at.chunk, at.h) * angles + i] = sum;
    }
  }

  // A lane of the first warp takes a token.
  __device__ void store_terms() const {
    if (thread >= kWarpLanes) return;
    const bool is_inside = thread < at.tokens;
    ChunkTermGradients out{};
    double ends = 0, starts = 0;
    if (is_inside) {
      const ChunkTerms& terms = m.terms[thread];
      double end = 0;
      for (int row = thread * rank; row < (thread + 1) * rank; ++row) {
        out.source += m.later[row];
        end += m.end[row];
        starts += m.start[row];
      }
      out.source += terms.to_end * end;
      out.now = out.source;
      for (int i = 0; i < rank * rank; ++i) out.now += m.own[thread * rank * rank + i];
      ends = terms.to_end * terms.source * end;
      starts *= terms.decay;
    }
    // What was written before the token, and what is read from it on.
    for (int step = 1; step < kWarpLanes; step *= 2) {
      const double before = __shfl_up_sync(0xffffffffu, ends, step);
      const double behind = __shfl_down_sync(0xffffffffu, starts, step);
      if (thread >= step) ends += before;
      if (thread + step < kWarpLanes) starts += behind;
    }
    ends = __shfl_up_sync(0xffffffffu, ends, 1);
    if (!is_inside) return;
    if (thread == 0) ends = 0;
    out.log_decay =
        m.inside[thread] + (double{m.terms[at.tokens - 1].decay} * *m.at_end + ends) + starts;
    job.term_grads[at.token_at(job, thread)] = out;
  }

  __device__ float* sums() const {
    return job.sums_of(at.chunk, at.h);
  }
};

template <int kRows>
__global__ void __launch_bounds__(kChunkThreads<kRows>)
    chunk_walk_kernel(const BackwardJobCuda job) {
  extern __shared__ float4 memory[];
  const ChunkPlace at(job);
  if (at.tokens == 0) return;
  SharedParts parts(reinterpret_cast<float*>(memory));
  const ChunkWalkMemory m(job.sizes, kRows, parts);
  const ChunkWalk<kRows> walk(job, at, m);
  walk.load();
  __syncthreads();
  const auto grad_scores = walk.score_rows();
  __syncthreads();
  walk.sum_scores();
  walk.x_rows();
  __syncthreads();
  walk.store_score_gradients(grad_scores);
  walk.store_x();
  __syncthreads();
  walk.q_rows();
  __syncthreads();
  walk.load_x(m.grad_o);
  walk.turn_back(m.q, false, job.grad_c, walk.sums() + job.places.out_c_bias);
  walk.k_rows();
  __syncthreads();
  walk.turn_back(m.k, true, job.grad_b, walk.sums() + job.places.in_b_bias);
  walk.sum_phases();
  walk.store_terms();
}

}  // namespace
}  // namespace mamba3
