// States at the chunks' starts and, backward, their gradients at the chunks' ends: what a chunk
// adds to them, the walk from chunk to chunk, and what is before the first one.
#pragma once

#include <cstdint>

#include "ops/launch.cuh"
#include "ops/mamba3_scan_backward/scan_backward_rows_cuda.cuh"

namespace mamba3 {
namespace {

struct ChunkStateMemory {
  int k_pitch;
  int x_pitch;
  ChunkTerms* terms;  // [t]
  float* k;           // [rows, n]
  float* x;           // [rows, p] times what is left of it at the chunk's end

  __host__ __device__ ChunkStateMemory(const TokenSizes& sizes, int rows, SharedParts& parts) {
    k_pitch = odd_pitch(sizes.state);
    x_pitch = odd_pitch(sizes.head_dim);
    terms = parts.take<ChunkTerms>(rows);
    k = parts.take<float>(rows * k_pitch);
    x = parts.take<float>(rows * x_pitch);
  }
};

// starts = sum of to_end source K X^T
template <int kRows>
__global__ void __launch_bounds__(kChunkThreads<kRows>)
    chunk_states_kernel(const BackwardJobCuda job) {
  extern __shared__ float4 memory[];
  const ChunkPlace at(job);
  if (at.tokens == 0) return;
  SharedParts parts(reinterpret_cast<float*>(memory));
  const ChunkStateMemory m(job.sizes, kRows, parts);
  load_terms(job, at, m.terms);
  TurnedRows(job, at, job.normed_b, job.params.in_b_bias, job.grad_b).load(kRows, m.k_pitch, m.k);
  __syncthreads();
  load_spread(job, at, kRows, m.x, [&](int t) { return m.terms[t].to_end * m.terms[t].source; });
  __syncthreads();
  store_transposed_product<kRows>(ThreadPlace(), m.k, m.k_pitch, job.sizes.state, m.x, m.x_pitch,
                                  job.p_stride, at.rows, job.starts + at.matrix_at(job));
}

constexpr int kWalkThreads = 256;
constexpr int kAhead = 8;  // chunks asked for at once

// A thread's vector of one head's state of one sequence.
struct StateVector {
  int sequence;
  std::int64_t slot;
  int h;
  int head;
  int row;
  int column;
  bool is_inside;
  std::int64_t at;  // in a matrix of the workspace

  __device__ StateVector(const BackwardJobCuda& job, int blocks) {
    const int block = static_cast<int>(blockIdx.x) % blocks;
    sequence = static_cast<int>(blockIdx.x) / blocks;
    slot = job.slots[sequence];
    h = static_cast<int>(blockIdx.y);
    head = job.first_head + h;
    at = 4 * (std::int64_t{block} * kWalkThreads + threadIdx.x);
    is_inside = at < job.matrix();
    row = static_cast<int>(at / job.p_stride);
    column = static_cast<int>(at % job.p_stride);
  }
  // f(i, place in the state's own matrix) for the numbers that it has.
  template <class F>
  __device__ void each(const BackwardJobCuda& job, const F& f) const {
    const TokenSizes& sizes = job.sizes;
    const std::int64_t first = (std::int64_t{head} * sizes.state + row) * sizes.head_dim + column;
    for (int i = 0; i < 4; ++i) {
      if (is_inside && column + i < sizes.head_dim) f(i, first + i);
    }
  }
  __device__ float* of_chunk(const BackwardJobCuda& job, float* matrices, int chunk) const {
    return matrices + job.chunk_at(chunk, h) * job.matrix() + at;
  }
  __device__ float decay(const BackwardJobCuda& job, int chunk) const {
    return job.terms[job.token_at(h, job.chunks.pieces[chunk].end - 1)].decay;
  }
};

// The state before the first token, with the term of the token before that.
__device__ __forceinline__ void load_first(const BackwardJobCuda& job, const StateVector& at,
                                           int chunk, float (&state)[4]) {
  const TokenSizes& sizes = job.sizes;
  const HeadGate gate = head_gate(sizes, job.params, at.head);
  const float* ssm = job.states.ssm + at.slot * job.states.ssm_stride;
  const float* v = job.states.v + at.slot * job.states.v_stride +
                   std::int64_t{at.head} * sizes.head_dim + at.column;
  const float* k =
      job.states.k + at.slot * job.states.k_stride + std::int64_t{at.head} * sizes.state + at.row;
  const float carry = job.terms[job.token_at(at.h, job.chunks.pieces[chunk].begin)].carry;
  at.each(job, [&](int i, std::int64_t place) {
    state[i] = ssm[place];
    for (int r = 0; r < sizes.rank; ++r) {
      const float x = carry * own_x(gate, r, at.column + i, v[i]);
      state[i] = fmaf(x, k[std::int64_t{r} * sizes.heads * sizes.state], state[i]);
    }
  });
}

// From what each chunk adds to the state before each.
__global__ void __launch_bounds__(kWalkThreads)
    walk_states_kernel(const BackwardJobCuda job, const int blocks) {
  const StateVector at(job, blocks);
  const int end = job.chunks.first[at.sequence + 1];
  int chunk = job.chunks.first[at.sequence];
  if (chunk == end || !at.is_inside) return;
  float state[4] = {};
  load_first(job, at, chunk, state);
  for (; chunk < end; chunk += kAhead) {
    float added[kAhead][4], decays[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (chunk + i >= end) continue;
      load_vector<4>(at.of_chunk(job, job.starts, chunk + i), added[i]);
      decays[i] = at.decay(job, chunk + i);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (chunk + i >= end) continue;
      store_vector<4>(state, at.of_chunk(job, job.starts, chunk + i));
      for (int j = 0; j < 4; ++j) state[j] = fmaf(decays[i], state[j], added[i][j]);
    }
  }
}

// From what each chunk adds to the gradient of the state before it, to that behind each; and from
// the gradient in grad_states to that before the first token.
__global__ void __launch_bounds__(kWalkThreads)
    walk_gradients_kernel(const BackwardJobCuda job, const int blocks) {
  const StateVector at(job, blocks);
  const int begin = job.chunks.first[at.sequence];
  const int end = job.chunks.first[at.sequence + 1];
  if (begin == end) return;
  float* ssm = job.grad_states.ssm + at.slot * job.grad_states.ssm_stride;
  const int part = static_cast<int>(blockIdx.x) % blocks * (kWalkThreads / kWarpLanes) +
                   static_cast<int>(threadIdx.x) / kWarpLanes;
  float grad[4] = {};
  at.each(job, [&](int i, std::int64_t place) { grad[i] = ssm[place]; });
  for (int chunk = end - 1; chunk >= begin; chunk -= kBatch) {
    float added[kBatch][4] = {}, states[kBatch][4] = {}, decays[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (chunk - i < begin) continue;
      decays[i] = at.decay(job, chunk - i);
      if (!at.is_inside) continue;
      load_vector<4>(at.of_chunk(job, job.ends, chunk - i), added[i]);
      load_vector<4>(at.of_chunk(job, job.starts, chunk - i), states[i]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (chunk - i < begin) continue;
      if (at.is_inside) store_vector<4>(grad, at.of_chunk(job, job.ends, chunk - i));
      float product = 0;
      for (int j = 0; j < 4; ++j) product = fmaf(grad[j], states[i][j], product);
      for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
        product += __shfl_xor_sync(0xffffffffu, product, lanes);
      }
      if (threadIdx.x % kWarpLanes == 0) {
        job.end_products[job.chunk_at(chunk - i, at.h) * job.end_parts + part] = product;
      }
      for (int j = 0; j < 4; ++j) grad[j] = fmaf(decays[i], grad[j], added[i][j]);
    }
  }
  at.each(job, [&](int i, std::int64_t place) { ssm[place] = grad[i]; });
}

constexpr int kFirstThreads = 256;
constexpr int kFirstWarps = kFirstThreads / kWarpLanes;

// One head of a sequence: the term carry K X^T of the token before the first one.
__global__ void __launch_bounds__(kFirstThreads) before_first_kernel(const BackwardJobCuda job) {
  __shared__ float x[kMostHeadDim], k[kMostState];
  __shared__ double parts[kFirstWarps];
  const TokenSizes& sizes = job.sizes;
  const int sequence = static_cast<int>(blockIdx.x);
  const int first = job.chunks.first[sequence];
  if (first == job.chunks.first[sequence + 1]) return;
  const auto h = static_cast<int>(blockIdx.y);
  const int head = job.first_head + h;
  const std::int64_t slot = job.slots[sequence];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpLanes;
  const HeadGate gate = head_gate(sizes, job.params, head);
  const float carry = job.terms[job.token_at(h, job.chunks.pieces[first].begin)].carry;
  const std::int64_t in_v = std::int64_t{head} * sizes.head_dim;
  const float* v = job.states.v + slot * job.states.v_stride + in_v;
  const float* grad = job.grad_states.ssm + slot * job.grad_states.ssm_stride +
                      std::int64_t{head} * sizes.state * sizes.head_dim;
  float grad_v = 0;
  double grad_carry = 0;
  for (int r = 0; r < sizes.rank; ++r) {
    const std::int64_t in_k = (std::int64_t{r} * sizes.heads + head) * sizes.state;
    __syncthreads();
    if (thread < sizes.head_dim) x[thread] = own_x(gate, r, thread, v[thread]);
    if (thread < sizes.state) k[thread] = job.states.k[slot * job.states.k_stride + in_k + thread];
    __syncthreads();
    if (thread < sizes.head_dim) {
      float grad_x = 0;
#pragma unroll 8
      for (int j = 0; j < sizes.state; ++j) {
        grad_x = fmaf(k[j], grad[std::int64_t{j} * sizes.head_dim + thread], grad_x);
      }
      grad_carry += double{x[thread]} * grad_x;
      grad_x *= carry;
      grad_v += own_x(gate, r, thread, grad_x);
      if (sizes.mimo) {
        job.sums_of(first, h)[job.places.mimo_x + r * sizes.head_dim + thread] +=
            grad_x * v[thread];
      }
    }
    float* grad_k = job.grad_states.k + slot * job.grad_states.k_stride + in_k;
    for (int j = thread / kWarpLanes; j < sizes.state; j += kFirstWarps) {
      double sum = 0;
      for (int p = lane; p < sizes.head_dim; p += kWarpLanes) {
        sum += double{x[p]} * grad[std::int64_t{j} * sizes.head_dim + p];
      }
      sum = warp_sum(sum);
      if (lane == 0) grad_k[j] = static_cast<float>(carry * sum);
    }
  }
  if (thread < sizes.head_dim) {
    job.grad_states.v[slot * job.grad_states.v_stride + in_v + thread] = grad_v;
  }
  grad_carry = warp_sum(grad_carry);
  if (lane == 0) parts[thread / kWarpLanes] = grad_carry;
  __syncthreads();
  if (thread != 0) return;
  double sum = 0;
  for (const double part : parts) sum += part;
  job.grad_carry[std::int64_t{sequence} * job.heads + h] = static_cast<float>(sum);
}

}  // namespace
}  // namespace mamba3
