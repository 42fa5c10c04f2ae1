// The walk back over the chunks of a sequence, by one block a head.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_gradients_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_numbers_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_outputs_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_scores_cuda.cuh"

namespace mamba3 {
namespace {

// Warps that make no scores.
constexpr unsigned kNumbersWarp = kBackwardWarps - 1;
constexpr unsigned kInsideWarp = kNumbersWarp - 1;
constexpr unsigned kRequestingWarp = kInsideWarp - 1;
static_assert(kRequestingWarp >= kScoreWarps);

template <class S>
using GradStateTile = StateTile<kBackwardThreads, S>;
template <class S>
using GradState = Sums<GradStateTile<S>::kBlocks>;

// What of a chunk is asked for while the one behind it is worked on: what it comes to first, and,
// when its memory is free, the rest.
template <class S>
__device__ __forceinline__ void request_rows_of(const BackwardMmaJob& job, const MmaPlace& at,
                                                const BackwardChunk& chunk, int parity,
                                                BackwardMemory<S>& m) {
  if (at.warp == kRequestingWarp && elect_lane()) {
    const int stride = turn_stride(job.scan.sizes.angles);
    const auto turn_bytes = static_cast<std::uint32_t>(chunk.tokens * stride) * sizeof(__half2);
    barrier_arrive_expecting(&m.rows_came, chunk.tokens * 4 * S::kRank * S::kState + turn_bytes +
                                               ChunkDecays<S>::kBytes);
    request_raw<S>(job, at, chunk, job.scan.in_b, m.keys.b, &m.rows_came);
    bulk_copy(m.cos_sin(parity, job.scan.sizes.angles),
              job.cos_sin + (at.head * job.scan.tokens + chunk.begin) * stride, turn_bytes,
              &m.rows_came);
  }
}

// Rows of C come where products are given away, and decays where those of the chunk behind were:
// both are expected with the others.
template <class S>
__device__ __forceinline__ void request_rest_of(const BackwardMmaJob& job, const MmaPlace& at,
                                                const BackwardChunk& chunk, int parity,
                                                BackwardMemory<S>& m) {
  if (at.warp == kRequestingWarp && elect_lane()) {
    request_raw<S>(job, at, chunk, job.scan.out_c, m.raw_c, &m.rows_came);
    bulk_copy(&m.decays[parity], decays_of<S>(job, at, chunk), ChunkDecays<S>::kBytes,
              &m.rows_came);
  }
}

template <class S>
__device__ __forceinline__ void request_columns_of(const BackwardMmaJob& job, const MmaPlace& at,
                                                   const BackwardChunk& chunk,
                                                   BackwardMemory<S>& m) {
  request_columns<kBackwardThreads, S>(at, chunk, job.scan.x, job.scan.zx_stride, m.keys.x);
  request_columns<kBackwardThreads, S>(at, chunk, job.scan.z, job.scan.zx_stride, m.raw_z);
  request_columns<kBackwardThreads, S>(at, chunk, job.grad_y, job.grad_y_stride, m.raw_grad_y);
}

template <class S>
__device__ __forceinline__ void request_state(const BackwardMmaJob& job, const MmaPlace& at,
                                              const BackwardChunk& chunk, BackwardMemory<S>& m) {
  constexpr std::uint32_t kBytes = S::kState * kTileRowBytes;
  if (at.warp != kRequestingWarp || !elect_lane()) return;
  barrier_arrive_expecting(&m.state_came, kBytes);
  bulk_copy(
      m.state,
      job.states + (chunk.number * job.scan.sizes.heads + at.head) * (S::kState * kBackwardHeadDim),
      kBytes, &m.state_came);
}

template <class S>
__device__ void load_head(const BackwardMmaJob& job, const MmaPlace& at, BackwardMemory<S>& m,
                          int parity) {
  const TokenSizes& sizes = job.scan.sizes;
  const Mamba3Params& params = job.scan.params;
  const int thread = static_cast<int>(threadIdx.x);
  load_pairs<kBackwardThreads, S>(sizes, params.in_b_norm, params.in_b_bias, at.head, m.b_norm,
                                  m.b_bias);
  load_pairs<kBackwardThreads, S>(sizes, params.out_c_norm, params.out_c_bias, at.head, m.c_norm,
                                  m.c_bias);
  load_rank_weights<kBackwardThreads, S>(params.mimo_x, at.head, m.mimo_x);
  load_rank_weights<kBackwardThreads, S>(params.mimo_z, at.head, m.mimo_z);
  load_rank_weights<kBackwardThreads, S>(params.mimo_o, at.head, m.mimo_o);
  const float* angle = job.grad_states.angle + at.slot * job.grad_states.angle_stride +
                       std::int64_t{at.head} * sizes.angles;
  for (int i = thread; i < sizes.angles; i += kBackwardThreads) m.phase[parity][i] = angle[i];
}

// The head's part of the gradient of the state: [n, p].
__device__ __forceinline__ float* grad_ssm(const BackwardMmaJob& job, const MmaPlace& at) {
  return job.grad_states.ssm + at.slot * job.grad_states.ssm_stride +
         std::int64_t{at.head} * job.scan.sizes.state * kBackwardHeadDim;
}

// Of one value a thread, in every thread. All threads meet here.
template <class S>
__device__ float sum_block(BackwardMemory<S>& m, const MmaPlace& at, float value) {
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  __syncthreads();
  auto& parts = m.sums[0].states;
  if (at.lane == 0) parts[at.warp] = value;
  __syncthreads();
  float sum = 0;
  for (const float part : parts) sum += part;
  return sum;
}

template <class S>
__device__ __forceinline__ void keep_start_k(const BackwardMmaJob& job, const MmaPlace& at,
                                             BackwardMemory<S>& m) {
  const Mamba3States& states = job.scan.states;
  const float* k = states.k + at.slot * states.k_stride + std::int64_t{at.head} * S::kState;
  for (int i = static_cast<int>(threadIdx.x); i < S::kRank * S::kState; i += kBackwardThreads) {
    const std::int64_t r = i / S::kState;
    m.start_k()[i] = k[r * job.scan.sizes.heads * S::kState + i % S::kState];
  }
}

// The sequence's first state is given the carried term of the token before: that of k, v, carry.
// Its gradient is kept. Other memory of the chunk is free.
template <class S>
__device__ void leave_start(const BackwardMmaJob& job, const MmaPlace& at, BackwardMemory<S>& m) {
  constexpr int kColumns = S::kRank * kBackwardHeadDim;
  const TokenSizes& sizes = job.scan.sizes;
  const Mamba3StateGradients& grads = job.grad_states;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t rank_stride = std::int64_t{sizes.heads} * S::kState;
  constexpr int kRow = BackwardMemory<S>::kStartRow;
  const float* grad = m.start_grad();
  const float* k = m.start_k();
  const float* v =
      job.scan.states.v + at.slot * job.scan.states.v_stride + at.head * kBackwardHeadDim;
  float* grad_k = grads.k + at.slot * grads.k_stride + std::int64_t{at.head} * S::kState;
  float* grad_v = grads.v + at.slot * grads.v_stride + at.head * kBackwardHeadDim;
  const std::int64_t first = at.head * job.scan.tokens + at.begin;
  const float carry = job.scan.weights[first].y;
  auto* spread = reinterpret_cast<float*>(m.x);  // [r, p] X of the token before
  auto* along = spread + kColumns;               // [r, p] its K times grad
  float own = 0;
  if (thread < kColumns) {
    const int r = thread / kBackwardHeadDim, p = thread % kBackwardHeadDim;
    float sum = 0;
#pragma unroll 8
    for (int n = 0; n < S::kState; ++n) {
      sum = fmaf(k[r * S::kState + n], grad[n * kRow + p], sum);
    }
    along[thread] = sum;
    spread[thread] = v[p] * m.mimo_x[r][weight_place(p)];
    own = sum * spread[thread];
    if constexpr (S::kRank > 1) m.gate_sums[0][0][r][p] += carry * sum * v[p];
  }
  const float grad_carry = sum_block(m, at, own);
  if (thread == 0) job.grad_carry[first] = grad_carry;
  if (thread < kBackwardHeadDim) {
    float sum = 0;
    for (int r = 0; r < S::kRank; ++r) {
      sum = fmaf(carry * along[r * kBackwardHeadDim + thread], m.mimo_x[r][weight_place(thread)],
                 sum);
    }
    grad_v[thread] = sum;
  }
  for (int i = thread; i < S::kRank * S::kState; i += kBackwardThreads) {
    const int r = i / S::kState, n = i % S::kState;
    float sum = 0;
#pragma unroll 8
    for (int p = 0; p < kBackwardHeadDim; ++p) {
      sum = fmaf(spread[r * kBackwardHeadDim + p], grad[n * kRow + p], sum);
    }
    grad_k[r * rank_stride + n] = carry * sum;
  }
}

template <class S>
__device__ void leave_sums(const BackwardMmaJob& job, const MmaPlace& at, float skip_sum,
                           BackwardMemory<S>& m) {
  const HeadSumPlaces& places = job.places;
  const int thread = static_cast<int>(threadIdx.x);
  float* out = job.head_sums +
               (std::int64_t{job.first_piece[at.sequence]} * job.scan.sizes.heads + at.head) *
                   places.elements;
  const float skip = sum_block(m, at, skip_sum);
  if (thread == 0) out[places.skip] = skip;
  const auto over_tiles = [](const auto& tiles, int r, int i) {
    return (tiles[0][r][i] + tiles[1][r][i]) + (tiles[2][r][i] + tiles[3][r][i]);
  };
  for (int i = thread; i < S::kRank * S::kState; i += kBackwardThreads) {
    const int r = i / S::kState, n = i % S::kState;
    const int to = r * S::kState + place_of(job.scan.sizes, n);
    out[places.in_b_bias + to] = over_tiles(m.bias_sums[0], r, n);
    out[places.out_c_bias + to] = over_tiles(m.bias_sums[1], r, n);
  }
  if constexpr (S::kRank > 1) {
    for (int i = thread; i < S::kRank * kBackwardHeadDim; i += kBackwardThreads) {
      const int r = i / kBackwardHeadDim, p = i % kBackwardHeadDim;
      out[places.mimo_x + i] = over_tiles(m.gate_sums[0], r, p);
      out[places.mimo_z + i] = over_tiles(m.gate_sums[1], r, p);
      out[places.mimo_o + i] = over_tiles(m.gate_sums[2], r, p);
    }
  }
}

// What a warp's part of the gradient and the state have in common, and the gradient in bf16.
template <class S>
__device__ __forceinline__ void multiply_states(const MmaPlace& at, const GradStateTile<S>& tile,
                                                const GradState<S>& grad, int parity,
                                                BackwardMemory<S>& m) {
  float sum = tile.multiply_with(Factor(m, m.state, at.lane), grad);
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  }
  if (at.lane == 0) m.sums[parity].states[at.warp] = sum;
}

template <class S>
__device__ __forceinline__ void prepare_chunk(const BackwardMmaJob& job, const MmaPlace& at,
                                              int parity, const GradStateTile<S>& tile,
                                              GradState<S>& grad, BackwardMemory<S>& m) {
  tile.put(Factor(m, m.grad_state, at.lane), grad);
  const int angles = job.scan.sizes.angles;
  const __half2* cos_sin = m.cos_sin(parity, angles);
  make_rows<kBackwardThreads, S>(at, cos_sin, turn_stride(angles), angles,
                                 Rows<S>{m.keys.b, m.b_norm, m.b_bias, m.k},
                                 Rows<S>{m.raw_c, m.c_norm, m.c_bias, m.q});
  make_columns<kBackwardThreads>(m.decays[parity], m);
}

// What is left to tell of a chunk when it has been walked: by warps that make no scores of the
// next.
template <class S>
__device__ __forceinline__ void tell_sums(const BackwardMmaJob& job, const MmaPlace& at,
                                          const BackwardChunk& chunk, int parity, unsigned turn,
                                          BackwardMemory<S>& m) {
  if (at.warp == kInsideWarp) add_inside(parity, at.lane, m);
  if (at.warp == kNumbersWarp) tell_numbers(job, at, chunk, parity, turn, m);
}

// Up to where the last chunk can be walked.
template <class S>
__device__ __forceinline__ void begin_walk(const BackwardMmaJob& job, const ChainPlace& at,
                                           int last, const GradStateTile<S>& tile,
                                           GradState<S>& grad, unsigned char* memory,
                                           BackwardMemory<S>& m) {
  const TokenSizes& sizes = job.scan.sizes;
  open_memory<kBackwardThreads>(memory, BackwardMemory<S>::bytes(sizes.angles), m);
  if (threadIdx.x == 0) open_numbers(m);
  request_rows_of(job, at, BackwardChunk::at<S>(at, last), last & 1, m);
  request_rest_of(job, at, BackwardChunk::at<S>(at, last), last & 1, m);
  request_columns_of(job, at, BackwardChunk::at<S>(at, last), m);
  __pipeline_commit();
  request_state(job, at, BackwardChunk::at<S>(at, last), m);
  load_head(job, at, m, last & 1);
  tile.each(grad, [&](float& a, float& b, unsigned n, unsigned p) {
    const float* from =
        grad_ssm(job, at) + place_of(sizes, static_cast<int>(n)) * kBackwardHeadDim + p;
    a = from[0];
    b = from[1];
  });
  __pipeline_wait_prior(0);
  barrier_wait(&m.rows_came, 0);
  __syncthreads();
}

template <class S>
__device__ __forceinline__ void walk_chunk(const BackwardMmaJob& job, const ChainPlace& at,
                                           int index, int last, const GradStateTile<S>& tile,
                                           GradState<S>& grad, HeadOutputs<S>& outputs,
                                           BackwardMemory<S>& m) {
  const int parity = index & 1;
  const BackwardChunk chunk = BackwardChunk::at<S>(at, index);
  const BackwardChunk next = BackwardChunk::at<S>(at, index - 1);
  const ChunkDecays<S>& decays = m.decays[parity];
  prepare_chunk(job, at, parity, tile, grad, m);
  barrier_wait(&m.state_came, (last - index) & 1);
  fence_async_proxy();
  __syncthreads();
  if (index > 0) request_rows_of(job, at, next, parity ^ 1, m);
  outputs.start_states();
  if (index < last) {
    tell_sums(job, at, BackwardChunk::at<S>(at, index + 1), parity ^ 1, (last - index - 1) & 1, m);
  }
  make_scores(at, parity, m);
  outputs.finish_states(decays);
  multiply_states(at, tile, grad, parity, m);
  outputs.tell_states(m.sums[parity]);
  fence_async_proxy();
  __syncthreads();
  // What is started here the tensor cores do while read-outs are finished.
  RowGradients<S> rows(job, at, m, parity);
  rows.start();
  outputs.take_states();
  outputs.add_scores();
  rows.fade();
  tile.start_fold(decays.whole, Operands(m), m.q, m.decayed_grad_o, grad);
  outputs.finish(chunk);
  __syncthreads();
  if (index > 0) {
    request_rest_of(job, at, next, parity ^ 1, m);
    request_columns_of(job, at, next, m);
  }
  __pipeline_commit();
  rows.wait();
  rows.finish(chunk);
  tile.finish_fold(grad);
  __pipeline_wait_prior(0);
  if (index > 0) barrier_wait(&m.rows_came, (last - index + 1) & 1);
  __syncthreads();
  if (index > 0) request_state(job, at, next, m);
  if (at.warp < kPhaseWarps) tell_phases(job, at, chunk, parity, (last - index) & 1, m);
}

// What the first chunk leaves, and what the head leaves behind it.
template <class S>
__device__ __forceinline__ void end_walk(const BackwardMmaJob& job, const ChainPlace& at, int last,
                                         const GradStateTile<S>& tile, GradState<S>& grad,
                                         float skip_sum, BackwardMemory<S>& m) {
  const TokenSizes& sizes = job.scan.sizes;
  tell_sums(job, at, BackwardChunk::at<S>(at, 0), 0, last & 1, m);
  tile.each(grad, [&](float a, float b, unsigned n, unsigned p) {
    const int row = place_of(sizes, static_cast<int>(n));
    float* to = grad_ssm(job, at) + row * kBackwardHeadDim + p;
    float* kept = m.start_grad() + row * BackwardMemory<S>::kStartRow + p;
    to[0] = kept[0] = a;
    to[1] = kept[1] = b;
  });
  keep_start_k(job, at, m);
  __syncthreads();
  float* angle = job.grad_states.angle + at.slot * job.grad_states.angle_stride +
                 std::int64_t{at.head} * sizes.angles;
  for (int i = static_cast<int>(threadIdx.x); i < sizes.angles; i += kBackwardThreads) {
    angle[i] = m.phase[1][i];
  }
  leave_start(job, at, m);
  leave_sums(job, at, skip_sum, m);
}

template <class S>
__device__ __forceinline__ void walk_head(const BackwardMmaJob& job, const ChainPlace& at,
                                          unsigned char* memory, BackwardMemory<S>& m) {
  const int last = (at.end - at.begin - 1) / S::kTokens;
  const GradStateTile<S> tile(at);
  GradState<S> grad;
  begin_walk(job, at, last, tile, grad, memory, m);
  HeadOutputs<S> outputs(job, at, m);
  for (int index = last; index >= 0; --index) {
    walk_chunk(job, at, index, last, tile, grad, outputs, m);
  }
  end_walk(job, at, last, tile, grad, outputs.skip_sum, m);
}

// Blocks of a chain's other heads have nothing to do where its first one's walks them all.
template <class S>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    backward_walk_kernel(const __grid_constant__ BackwardMmaJob job) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& m = *reinterpret_cast<BackwardMemory<S>*>(memory);
  ChainPlace at(job.scan);
  __builtin_assume(at.warp < kBackwardWarps);  // a warp's columns are then known to be of one tile
  if (at.begin >= at.end) return;
  const int heads = !walks_chains(job, at) ? 1 : at.head % job.chain == 0 ? job.chain : 0;
#pragma unroll 1
  for (const int end = at.head + heads; at.head < end; ++at.head) {
    walk_head<S>(job, at, memory, m);
    if (threadIdx.x == 0) close_numbers(m);
    close_memory(m);
  }
}

}  // namespace
}  // namespace mamba3
