// The rows of one chunk of one head in the shared memory of a block: K and Q turned, x spread over
// the ranks. Rows and columns that the chunk does not have are zeros.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_job_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_products_cuda.cuh"

namespace mamba3 {
namespace {

// One block's chunk.
struct ChunkPlace {
  int chunk;
  int h;     // of the heads in hand
  int head;  // of all
  BackwardPiece piece;
  int tokens;
  int rows;
  bool is_last;  // of its sequence

  __device__ explicit ChunkPlace(const BackwardJobCuda& job) {
    chunk = static_cast<int>(blockIdx.x);
    h = static_cast<int>(blockIdx.y);
    head = job.first_head + h;
    piece = job.chunks.pieces[chunk];
    tokens = piece.end - piece.begin;
    rows = tokens * job.sizes.rank;
    is_last = tokens > 0 && chunk + 1 == job.chunks.first[piece.sequence + 1];
  }
  __device__ std::int64_t token_at(const BackwardJobCuda& job, int t) const {
    return job.token_at(h, piece.begin + t);
  }
  __device__ std::int64_t matrix_at(const BackwardJobCuda& job) const {
    return job.chunk_at(chunk, h) * job.matrix();
  }
  __device__ StateMatrix state(const BackwardJobCuda& job, const float* matrices) const {
    return {matrices + matrix_at(job), job.sizes.state, job.p_stride};
  }
};

__device__ __forceinline__ void load_terms(const BackwardJobCuda& job, const ChunkPlace& at,
                                           ChunkTerms* terms) {
  for (int t = static_cast<int>(threadIdx.x); t < at.tokens; t += static_cast<int>(blockDim.x)) {
    terms[t] = job.terms[at.token_at(job, t)];
  }
}

// Zeros behind what `rows` rows of `width` numbers fill of [all_rows, pitch].
__device__ __forceinline__ void clear_behind(int rows, int width, int all_rows, int pitch,
                                             float* out) {
  const auto thread = static_cast<int>(threadIdx.x);
  const auto threads = static_cast<int>(blockDim.x);
  const int behind = pitch - width;
  for (int i = thread; i < rows * behind; i += threads) {
    out[i / behind * pitch + width + i % behind] = 0;
  }
  for (int i = rows * pitch + thread; i < all_rows * pitch; i += threads) out[i] = 0;
}

// Rot(normed + bias): rows [rows, pitch] of K or Q, which are left in `kept` [h, t, r, n], too.
class TurnedRows {
 public:
  __device__ TurnedRows(const BackwardJobCuda& job, const ChunkPlace& at, const float* normed,
                        const float* bias, float* kept)
      : job_(job), rows_(at.rows), stride_(job.sizes.groups * job.sizes.state) {
    const TokenSizes& sizes = job.sizes;
    const std::int64_t first = std::int64_t{at.piece.begin} * sizes.rank;
    const int group = at.head / (sizes.heads / sizes.groups);
    normed_ = normed + (first * sizes.groups + group) * sizes.state;
    bias_ = bias + std::int64_t{at.head} * sizes.rank * sizes.state;
    rotations_ = job.rotations + at.token_at(job, 0) * 2 * sizes.angles;
    kept_ = kept + at.token_at(job, 0) * sizes.rank * sizes.state;
  }

  __device__ void load(int all_rows, int pitch, float* out) const {
    const int count = rows_ * (job_.sizes.state / 2);
    const auto threads = static_cast<int>(blockDim.x);
    for (int first = static_cast<int>(threadIdx.x); first < count; first += kBatch * threads) {
      Pair pairs[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i * threads < count) load_pair(first + i * threads, pairs[i]);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i * threads < count) store_pair(pairs[i], pitch, out);
      }
    }
    const int last = job_.sizes.state - 1;
    for (int row = static_cast<int>(threadIdx.x); last % 2 == 0 && row < rows_; row += threads) {
      const int r = row % job_.sizes.rank;
      store(row, last, __fadd_rn(normed_[row * stride_ + last], bias_[r * (last + 1) + last]),
            pitch, out);
    }
    clear_behind(rows_, job_.sizes.state, all_rows, pitch, out);
  }

 private:
  struct Pair {
    int row, a, b;
    bool turns;
    float value_a, value_b, bias_a, bias_b, cosine, sine;
  };

  __device__ __forceinline__ void load_pair(int place, Pair& to) const {
    const TokenSizes& sizes = job_.sizes;
    const int half = sizes.state / 2;
    to.row = job_.by_half.quotient(place);
    const int pair = place - to.row * half;
    to.a = sizes.mimo ? pair : 2 * pair;
    to.b = sizes.mimo ? half + pair : 2 * pair + 1;
    const int t = job_.by_rank.quotient(to.row);
    const float* from = normed_ + to.row * stride_;
    const float* add = bias_ + (to.row - t * sizes.rank) * sizes.state;
    to.value_a = __ldg(from + to.a);
    to.value_b = __ldg(from + to.b);
    to.bias_a = __ldg(add + to.a);
    to.bias_b = __ldg(add + to.b);
    to.turns = pair < sizes.angles;
    if (!to.turns) return;
    const float* cosine = rotations_ + t * 2 * sizes.angles + pair;
    to.cosine = __ldg(cosine);
    to.sine = __ldg(cosine + sizes.angles);
  }
  // As rotate_row().
  __device__ __forceinline__ void store_pair(const Pair& from, int pitch, float* out) const {
    const float a = __fadd_rn(from.value_a, from.bias_a);
    const float b = __fadd_rn(from.value_b, from.bias_b);
    store(from.row, from.a, from.turns ? __fmaf_rn(-b, from.sine, __fmul_rn(a, from.cosine)) : a,
          pitch, out);
    store(from.row, from.b, from.turns ? __fmaf_rn(b, from.cosine, __fmul_rn(a, from.sine)) : b,
          pitch, out);
  }
  __device__ __forceinline__ void store(int row, int j, float value, int pitch, float* out) const {
    out[row * pitch + j] = value;
    kept_[row * job_.sizes.state + j] = value;
  }

  const BackwardJobCuda& job_;
  int rows_;
  int stride_;  // from row to row
  const float* normed_;
  const float* bias_;
  const float* rotations_;
  float* kept_;
};

// The chunk's rows of a matrix [h, t, r, width] of the workspace, asked for: they are there after
// __pipeline_wait_prior(0) and a barrier. A warp takes a row.
__device__ __forceinline__ void request_rows(const BackwardJobCuda& job, const ChunkPlace& at,
                                             const float* matrix, int width, int all_rows,
                                             int pitch, float* out) {
  const float* from = matrix + at.token_at(job, 0) * job.sizes.rank * width;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int step = width % 4 == 0 ? 4 : 1;
  for (int row = static_cast<int>(threadIdx.x) / kWarpLanes; row < at.rows;
       row += static_cast<int>(blockDim.x) / kWarpLanes) {
    for (int j = step * lane; j < width; j += step * kWarpLanes) {
      const float* number = from + row * width + j;
      if (step == 4) {
        __pipeline_memcpy_async(out + row * pitch + j, number, 4 * sizeof(float));
      } else {
        __pipeline_memcpy_async(out + row * pitch + j, number, sizeof(float));
      }
    }
  }
  __pipeline_commit();
  clear_behind(at.rows, width, all_rows, pitch, out);
}

// x, with each rank's weights, times weight(t): rows [rows, p].
template <class Weight>
__device__ __forceinline__ void load_spread(const BackwardJobCuda& job, const ChunkPlace& at,
                                            int all_rows, float* __restrict__ out,
                                            const Weight& weight) {
  const TokenSizes& sizes = job.sizes;
  const HeadGate gate = head_gate(sizes, job.params, at.head);
  const std::int64_t own = std::int64_t{at.head} * sizes.head_dim;
  const int pitch = odd_pitch(sizes.head_dim);
  const int count = at.rows * pitch;
  const auto threads = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first < count; first += kBatch * threads) {
    float x[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = job.by_x_pitch.quotient(first + i * threads);
      const int column = first + i * threads - row * pitch;
      x[i] = 0;
      if (row < at.rows && column < sizes.head_dim) {
        x[i] = job.x.at(at.piece.begin + job.by_rank.quotient(row), own + column);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int row = job.by_x_pitch.quotient(first + i * threads);
      const int column = first + i * threads - row * pitch;
      if (row >= at.rows) continue;
      const int t = job.by_rank.quotient(row);
      float value = 0;
      if (column < sizes.head_dim) {
        value = weight(t) * own_x(gate, row - t * sizes.rank, column, x[i]);
      }
      out[first + i * threads] = value;
    }
  }
  for (int i = count + static_cast<int>(threadIdx.x); i < all_rows * pitch; i += threads) {
    out[i] = 0;
  }
}

// raw becomes the weighted scores: 0 for later tokens, `now` for the token itself, the decay
// between them times the source's weight for earlier ones.
struct ScoreWeight {
  float decay;  // 0 for the token itself and later ones
  float weight;
};

__device__ __forceinline__ ScoreWeight score_weight(const ChunkTerms* terms, int reader,
                                                    int source) {
  if (source > reader) return {0, 0};
  if (source == reader) return {0, terms[reader].now};
  const float decay = expf(static_cast<float>(terms[reader].sum - terms[source].sum));
  return {decay, decay * terms[source].source};
}

}  // namespace
}  // namespace mamba3
