// A block steps one head of one row. It asks for its part of the state first, into shared memory,
// prepares K, Q and the weights while that is on its way, and then goes over the state once: each
// thread takes kRows rows by V columns.
#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/cuda_ops.h"
#include "ops/launch.cuh"
#include "ops/mamba3_step/step_inputs_cuda.cuh"

namespace mamba3 {
namespace {

// Registers for three blocks at once on a multiprocessor: some load while others prepare.
constexpr int kBlocks = 3;

// The part of the state that one thread updates at a time: kRows rows one below the other, V
// columns.
template <int V>
struct Piece {
  int column;
  int row;   // the first
  int rows;  // of kRows that exist
  float h[kRows][V];

  __device__ Piece(const StepJob& job, int batch) {
    const int thread = static_cast<int>(threadIdx.x);
    const int group = thread / job.threads_across;
    column = thread % job.threads_across * V;
    row = (batch * job.groups + group) * kRows;
    rows = group < job.groups ? min(max(job.sizes.state - row, 0), kRows) : 0;
  }
  // Asks for the piece; it comes into this thread's part of `pieces`.
  __device__ void request(const float* ssm, int head_dim, float* pieces) const {
    const float* from = ssm + row * head_dim + column;
    float* to = pieces + threadIdx.x * V;
    for (int i = 0; i < rows; ++i) {
      __pipeline_memcpy_async(to + i * kThreads * V, from + i * head_dim, sizeof(float) * V);
    }
    __pipeline_commit();
  }
  __device__ void receive(const float* pieces) {
    __pipeline_wait_prior(0);
    load(pieces + threadIdx.x * V, kThreads * V);
  }
  __device__ void load(const float* from, int pitch) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < V; ++v) h[i][v] = 0;
      if (i < rows) load_vector<V>(from + i * pitch, h[i]);
    }
  }
  __device__ void store(float* ssm, int head_dim) const {
    float* to = ssm + row * head_dim + column;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i < rows) store_vector<V>(h[i], to + i * head_dim);
    }
  }
};

// kRows coefficients of one rank.
__device__ __forceinline__ void load_coefficients(const float* from, float (&to)[kRows]) {
  float part[4];
#pragma unroll
  for (int i = 0; i < kRows; i += 4) {
    load_vector<4>(from + i, part);
    for (int j = 0; j < 4; ++j) to[i + j] = part[j];
  }
}

// h += sum over ranks of x_r k_r
template <int V>
__device__ __forceinline__ void add_outer(const float* x, int head_dim, const float* k, int pitch,
                                          int rank, Piece<V>& piece) {
  for (int r = 0; r < rank; ++r) {
    float columns[V];
    float rows[kRows];
    load_vector<V>(x + r * head_dim + piece.column, columns);
    load_coefficients(k + r * pitch + piece.row, rows);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < V; ++v) piece.h[i][v] = fmaf(columns[v], rows[i], piece.h[i][v]);
    }
  }
}

// Adds the rows of the piece, each times Q, to this thread's part of the read-out.
template <int V>
__device__ __forceinline__ void read_piece(const float* q, int pitch, int rank, bool first,
                                           const Piece<V>& piece, float* pieces) {
  for (int r = 0; r < rank; ++r) {
    float* out = pieces + (r * kThreads + threadIdx.x) * V;
    float rows[kRows];
    float sums[V] = {};
    load_coefficients(q + r * pitch + piece.row, rows);
    if (!first) load_vector<V>(out, sums);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i >= piece.rows) continue;
      for (int v = 0; v < V; ++v) sums[v] = fmaf(rows[i], piece.h[i][v], sums[v]);
    }
    store_vector<V>(sums, out);
  }
}

// The first piece was asked for; where the state is larger, more follow.
template <int V>
__device__ void update_state(const StepJob& job, const Place& at, const Shared& s) {
  const int p = job.sizes.head_dim;
  const int rank = job.sizes.rank;
  const float decay = s.weights->decay;
  const int rows_at_once = job.groups * kRows;
  for (int batch = 0; batch * rows_at_once < job.sizes.state; ++batch) {
    Piece<V> piece(job, batch);
    if (piece.rows == 0) continue;
    if (batch == 0) {
      piece.receive(s.pieces);
    } else {
      piece.load(at.ssm + piece.row * p + piece.column, p);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < V; ++v) piece.h[i][v] *= decay;
    }
    add_outer<V>(s.x_carry, p, s.k_previous, s.pitch, rank, piece);
    add_outer<V>(s.x_now, p, s.k_now, s.pitch, rank, piece);
    piece.store(at.ssm, p);
    read_piece<V>(s.q_now, s.pitch, rank, batch == 0, piece, s.pieces);
  }
}

// Sums the threads' parts; normalises each rank's row where the layer does.
template <int V>
__device__ void finish_read_out(const StepJob& job, const Place& at, const HeadGate& gate,
                                const Shared& s) {
  const TokenSizes& sizes = job.sizes;
  const int count = sizes.rank * sizes.head_dim;
  const int groups = min(job.groups, (sizes.state + kRows - 1) / kRows);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const int r = i / sizes.head_dim;
    const int column = i - r * sizes.head_dim;
    const float* part = s.pieces + r * kThreads * V + column;
    float sum = part[0];
    for (int group = 1; group < groups; ++group) sum += part[group * job.threads_across * V];
    s.read_out[i] = add_skip(gate, r, column, s.x[column], sum);
  }
  __syncthreads();
  if (!sizes.out_norm) return;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const float* norm = job.params.out_norm + std::int64_t{at.head} * sizes.head_dim;
  for (int r = static_cast<int>(threadIdx.x) / kWarpLanes; r < sizes.rank; r += kWarps) {
    float* row = s.read_out + r * sizes.head_dim;
    warp_norm_row(row, norm, sizes.head_dim, lane, [&](int j, float value) { row[j] = value; });
  }
  __syncthreads();
}

__device__ void write_output(const StepJob& job, const Place& at, const HeadGate& gate,
                             const Shared& s) {
  const int p = job.sizes.head_dim;
  for (int column = static_cast<int>(threadIdx.x); column < p; column += kThreads) {
    const float z = s.z[column];
    float sum = gated(gate, 0, column, z, s.read_out[column]);
    for (int r = 1; r < gate.rank; ++r) {
      sum += gated(gate, r, column, z, s.read_out[r * p + column]);
    }
    at.y[column] = sum;
  }
}

template <int V>
__global__ void __launch_bounds__(kThreads, kBlocks) step_kernel(const StepJob job) {
  extern __shared__ float4 memory[];
  SharedParts parts(reinterpret_cast<float*>(memory));
  const Shared s(job.sizes, V, parts);
  const Place at(job);
  Piece<V>(job, 0).request(at.ssm, job.sizes.head_dim, s.pieces);
  const HeadGate gate = head_gate(job.sizes, job.params, at.head);
  prepare_inputs(job, at, s);
  prepare_norms(job, at, s);
  __syncthreads();
  turn_and_weigh(job, at, gate, s);
  __syncthreads();
  rotate(job, at, s);
  __syncthreads();
  update_state<V>(job, at, s);
  __syncthreads();
  finish_read_out<V>(job, at, gate, s);
  write_output(job, at, gate, s);
}

template <int V>
void launch(StepJob job, std::int64_t rows, cudaStream_t stream) {
  job.threads_across = job.sizes.head_dim / V;
  job.groups = kThreads / job.threads_across;
  SharedParts parts(nullptr);
  const Shared measured(job.sizes, V, parts);
  const auto bytes = static_cast<std::size_t>(parts.bytes());
  raise_shared(reinterpret_cast<const void*>(step_kernel<V>), bytes, "mamba3_step's shared memory");
  const unsigned blocks = grid_blocks(rows * job.sizes.heads);
  step_kernel<V><<<blocks, kThreads, bytes, stream>>>(job);
  check_launch("mamba3_step");
}

}  // namespace

void mamba3_step_cuda(const Mamba3StepArgs& args, Context& ctx) {
  StepJob job{};
  job.sizes = token_sizes(args.dims);
  job.params = args.params;
  job.columns = args.columns;
  job.slots = args.slots.data();
  job.states = args.states;
  job.y = args.y.floats();
  job.y_stride = args.y.stride[0];
  const auto rows = static_cast<std::int64_t>(args.slots.size());
  if (rows == 0) return;
  if (args.dims.head_dim % 4 == 0 && takes_vectors(args.states.ssm, args.states.ssm_stride)) {
    launch<4>(job, rows, stream_of(ctx));
  } else {
    launch<1>(job, rows, stream_of(ctx));
  }
}

}  // namespace mamba3
