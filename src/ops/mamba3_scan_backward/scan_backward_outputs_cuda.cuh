// The read-outs of a chunk, from the states at the chunks' starts, and backward from the gradient
// of y through gate and out-norm to theirs and to that of the state.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_rows_cuda.cuh"

namespace mamba3 {
namespace {

struct ChunkOutputMemory {
  int k_pitch;
  int x_pitch;
  int score_pitch;
  ChunkTerms* terms;  // [t]
  double* scales;     // [rows] 1 / rms of a read-out; out_norm only, as the next
  double* alongs;     // [rows] see norm_row_backward()
  float* q;           // [rows, n]
  float* k;           // [rows, n]
  float* x;           // [rows, p]
  float* o;           // [rows, p] read-outs; then their gradients, decayed to the chunk's start
  float* scores;      // [rows, rows] weighted
  float* tile;

  __host__ __device__ ChunkOutputMemory(const TokenSizes& sizes, int rows, SharedParts& parts) {
    k_pitch = odd_pitch(sizes.state);
    x_pitch = odd_pitch(sizes.head_dim);
    score_pitch = odd_pitch(rows);
    terms = parts.take<ChunkTerms>(rows);
    scales = parts.take<double>(rows);
    alongs = parts.take<double>(rows);
    q = parts.take<float>(rows * k_pitch);
    k = parts.take<float>(rows * k_pitch);
    x = parts.take<float>(rows * x_pitch);
    o = parts.take<float>(rows * x_pitch);
    scores = parts.take<float>(rows * score_pitch);
    tile = parts.take<float>(kTileFloats);
  }
};

// scores = weighted Q K^T
template <int kRows>
__device__ __forceinline__ void score_rows(const BackwardJobCuda& job, const ChunkPlace& at,
                                           const ThreadPlace& own, const ChunkOutputMemory& m) {
  constexpr int kColumns = kRows / kAcross;
  Sums<kColumns> sums;
  add_product_of_rows(sums, m.q + own.row * m.k_pitch, m.k_pitch, m.k + own.across * m.k_pitch,
                      m.k_pitch, whole_vectors(job.sizes.state));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int row = own.row + i;
      const int column = own.across + j * kAcross;
      const bool is_inside = row < at.rows && column < at.rows;
      const int reader = job.by_rank.quotient(row);
      const int source = job.by_rank.quotient(column);
      m.scores[row * m.score_pitch + column] =
          is_inside ? sums.at[i][j] * score_weight(m.terms, reader, source).weight : 0;
    }
  }
}

// o = decay Q G + scores X
template <int kRows>
__device__ __forceinline__ void read_out(const BackwardJobCuda& job, const ChunkPlace& at,
                                         const ThreadPlace& own, const ChunkOutputMemory& m) {
  const StateMatrix state = at.state(job, job.starts);
  for (int panel = 0; panel < job.p_stride; panel += kPanel) {
    Sums<4> sums;
    add_state_product<kRows>(sums, own, m.q, m.k_pitch, state, panel, m.tile);
    const int column = panel + 4 * own.across;
    if (column >= job.p_stride) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = own.row + i;
      const float decay = row < at.rows ? m.terms[job.by_rank.quotient(row)].decay : 0.0f;
      for (float& v : sums.at[i]) v *= decay;
    }
    add_product(sums, m.scores + own.row * m.score_pitch, m.score_pitch, m.x + column, m.x_pitch,
                kRows);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      store_vector<4>(sums.at[i], m.o + (own.row + i) * m.x_pitch + column);
    }
  }
}

// v * sigmoid(v) and its slope.
struct Silu {
  float at;
  float slope;

  __device__ explicit Silu(float v) {
    const float e = expf(-fabsf(v));
    const float large = 1.0f / (1.0f + e);
    const float small = large * e;
    const float sigmoid = v < 0 ? small : large;
    at = v * sigmoid;
    slope = sigmoid * fmaf(v, v < 0 ? large : small, 1.0f);
  }
};

// The gate of one number of one rank, backward.
struct GateGradients {
  float normed;   // of the norm's result
  float of_gate;  // of what silu takes
  float mimo_o;   //
  float unit;     // the read-out over its rms

  __device__ GateGradients(const BackwardJobCuda& job, const HeadGate& gate, int head, int r,
                           int column, float z, float grad_y, float o, double scale) {
    const int at = r * gate.head_dim + column;
    const bool mimo = gate.mimo_z != nullptr;
    const Silu silu(mimo ? z * gate.mimo_z[at] : z);
    unit = o;
    float result = o;
    if (job.sizes.out_norm) {
      unit = o * static_cast<float>(scale);
      result = unit * job.params.out_norm[std::int64_t{head} * gate.head_dim + column];
    }
    mimo_o = grad_y * result * silu.at;
    if (mimo) grad_y *= gate.mimo_o[at];
    of_gate = grad_y * result * silu.slope;
    normed = grad_y * silu.at;
  }
};

// What the gate of the chunk's rows needs at hand.
struct ChunkGate {
  const BackwardJobCuda& job;
  const ChunkPlace& at;
  const ChunkOutputMemory& m;
  HeadGate gate;
  std::int64_t own;

  __device__ ChunkGate(const BackwardJobCuda& job_in, const ChunkPlace& at_in,
                       const ChunkOutputMemory& memory)
      : job(job_in), at(at_in), m(memory), gate(head_gate(job.sizes, job.params, at.head)) {
    own = std::int64_t{at.head} * job.sizes.head_dim;
  }
  // What the gate reads of a token.
  struct Inputs {
    float z;
    float grad_y;
  };
  __device__ Inputs inputs(int t, int column) const {
    return {job.z.at(at.piece.begin + t, own + column),
            job.grad_y.at(at.piece.begin + t, own + column)};
  }
  __device__ GateGradients backward(int t, int r, int column, const Inputs& in) const {
    const int row = t * job.sizes.rank + r;
    return GateGradients(job, gate, at.head, r, column, in.z, in.grad_y,
                         m.o[row * m.x_pitch + column], m.scales[row]);
  }
  __device__ float norm_weight(int column) const { return job.params.out_norm[own + column]; }

  // The skip; and of each row what its norm's backward pass needs. A warp takes a row.
  __device__ void finish_read_outs() const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
    const int warps = static_cast<int>(blockDim.x) / kWarpLanes;
    const int p = job.sizes.head_dim;
    for (int row = static_cast<int>(threadIdx.x) / kWarpLanes; row < at.rows; row += warps) {
      float* o = m.o + row * m.x_pitch;
      double squares = 0;
      for (int j = lane; j < p; j += kWarpLanes) {
        o[j] = fmaf(gate.skip, m.x[row * m.x_pitch + j], o[j]);
        squares = fma(double{o[j]}, double{o[j]}, squares);
      }
      if (!job.sizes.out_norm) continue;
      const double scale = 1.0 / sqrt(warp_sum(squares) / p + kBcNormEps);
      if (lane == 0) m.scales[row] = scale;
      __syncwarp();
      double along = 0;
      const int t = job.by_rank.quotient(row);
      for (int j = lane; j < p; j += kWarpLanes) {
        const float grad = backward(t, row - t * job.sizes.rank, j, inputs(t, j)).normed;
        along = fma(double{grad} * norm_weight(j), double{o[j]}, along);
      }
      along = warp_sum(along) * scale * scale / p;
      if (lane == 0) m.alongs[row] = along;
    }
  }

  // Gradients of the parameters behind the read-out, a rank's column a thread.
  __device__ void sum_parameters(float* sums) const {
    const int p = job.sizes.head_dim;
    const int rank = job.sizes.rank;
    for (int i = static_cast<int>(threadIdx.x); job.sizes.mimo && i < rank * p;
         i += static_cast<int>(blockDim.x)) {
      const int r = i / p;
      float mimo_z = 0, mimo_o = 0;
#pragma unroll 4
      for (int t = 0; t < at.tokens; ++t) {
        const Inputs in = inputs(t, i - r * p);
        const GateGradients grads = backward(t, r, i - r * p, in);
        mimo_z = fmaf(grads.of_gate, in.z, mimo_z);
        mimo_o += grads.mimo_o;
      }
      sums[job.places.mimo_z + i] = mimo_z;
      sums[job.places.mimo_o + i] = mimo_o;
    }
    for (int column = static_cast<int>(threadIdx.x); job.sizes.out_norm && column < p;
         column += static_cast<int>(blockDim.x)) {
      float sum = 0;
      for (int row = 0; row < at.rows; ++row) {
        const int t = job.by_rank.quotient(row);
        const GateGradients grads = backward(t, row - t * rank, column, inputs(t, column));
        sum = fmaf(grads.normed, grads.unit, sum);
      }
      sums[job.places.out_norm + column] = sum;
    }
  }

  // The gradients of z and of the read-outs.
  __device__ void store_gradients() const {
    const int count = at.tokens * job.p_stride;
    const auto threads = static_cast<int>(blockDim.x);
    for (int first = static_cast<int>(threadIdx.x); first < count; first += kBatch * threads) {
      Inputs in[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int t = job.by_p_stride.quotient(first + i * threads);
        const int column = first + i * threads - t * job.p_stride;
        in[i] = {0, 0};
        if (t < at.tokens && column < job.sizes.head_dim) in[i] = inputs(t, column);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int t = job.by_p_stride.quotient(first + i * threads);
        const int column = first + i * threads - t * job.p_stride;
        if (t < at.tokens) store_gradients(t, column, in[i]);
      }
    }
  }

 private:
  // Columns that only fill a vector get zeros.
  __device__ __forceinline__ void store_gradients(int t, int column, const Inputs& in) const {
    const int rank = job.sizes.rank;
    const bool is_inside = column < job.sizes.head_dim;
    float* out = job.grad_o + at.token_at(job, t) * rank * job.p_stride + column;
    float* o = m.o + t * rank * m.x_pitch + column;
    float grad_z = 0;
    for (int r = 0; r < rank; ++r, out += job.p_stride, o += m.x_pitch) {
      float grad = 0;
      if (is_inside) {
        const GateGradients grads = backward(t, r, column, in);
        grad_z = fmaf(grads.of_gate,
                      job.sizes.mimo ? gate.mimo_z[r * gate.head_dim + column] : 1.0f, grad_z);
        grad = grads.normed;
        if (job.sizes.out_norm) {
          const int row = t * rank + r;
          grad = static_cast<float>((double{grad} * norm_weight(column) - m.alongs[row] * *o) *
                                    m.scales[row]);
        }
      }
      *out = grad;
      *o = m.terms[t].decay * grad;
    }
    if (is_inside) job.out.z.put(at.piece.begin + t, own + column, grad_z);
  }
};

// ends = Q^T (decay grad_o)
template <int kRows>
__global__ void __launch_bounds__(kChunkThreads<kRows>)
    chunk_outputs_kernel(const BackwardJobCuda job) {
  extern __shared__ float4 memory[];
  const ChunkPlace at(job);
  if (at.tokens == 0) return;
  const ThreadPlace own;
  SharedParts parts(reinterpret_cast<float*>(memory));
  const ChunkOutputMemory m(job.sizes, kRows, parts);
  load_terms(job, at, m.terms);
  request_rows(job, at, job.grad_b, job.sizes.state, kRows, m.k_pitch, m.k);
  TurnedRows(job, at, job.normed_c, job.params.out_c_bias, job.grad_c).load(kRows, m.k_pitch, m.q);
  load_spread(job, at, kRows, m.x, [](int) { return 1.0f; });
  __pipeline_wait_prior(0);
  __syncthreads();
  score_rows<kRows>(job, at, own, m);
  read_out<kRows>(job, at, own, m);
  __syncthreads();
  const ChunkGate gate(job, at, m);
  gate.finish_read_outs();
  __syncthreads();
  gate.sum_parameters(job.sums_of(at.chunk, at.h));
  __syncthreads();
  gate.store_gradients();
  __syncthreads();
  store_transposed_product<kRows>(own, m.q, m.k_pitch, job.sizes.state, m.o, m.x_pitch,
                                  job.p_stride, at.rows, job.ends + at.matrix_at(job));
}

}  // namespace
}  // namespace mamba3
