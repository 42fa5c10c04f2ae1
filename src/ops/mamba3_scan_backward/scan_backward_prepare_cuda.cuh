// Before the chunks of the general backward pass: what all heads share of the tokens, decays and
// weights, and rotations.
#pragma once

#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/mamba3_scan_backward/scan_backward_job_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareWarps = kPrepareThreads / kWarpLanes;

// A warp takes one row of B or C.
__global__ void __launch_bounds__(kPrepareThreads)
    backward_norm_rows_kernel(const BackwardJobCuda job) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows_per_token = std::int64_t{sizes.rank} * sizes.groups;
  const std::int64_t row =
      std::int64_t{blockIdx.x} * kPrepareWarps + static_cast<int>(threadIdx.x) / kWarpLanes;
  if (row >= job.tokens * rows_per_token) return;
  const bool is_b = blockIdx.y == 0;
  const std::int64_t token = row / rows_per_token;
  const std::int64_t from =
      token * job.columns.row_stride + (row - token * rows_per_token) * sizes.state;
  float* out = (is_b ? job.normed_b : job.normed_c) + row * sizes.state;
  warp_norm_row((is_b ? job.columns.in_b : job.columns.out_c) + from,
                is_b ? job.params.in_b_norm : job.params.out_c_norm, sizes.state,
                static_cast<int>(threadIdx.x) % kWarpLanes,
                [&](int j, float value) { out[j] = value; });
}

__global__ void __launch_bounds__(kPrepareThreads)
    backward_turn_rates_kernel(const BackwardJobCuda job) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (i >= job.tokens * job.sizes.angles) return;
  const std::int64_t token = i / job.sizes.angles;
  const std::int64_t angle = i - token * job.sizes.angles;
  job.turn_rates[i] = turn_rate(job.sizes, job.columns.angle_raw, token * job.columns.row_stride,
                                static_cast<int>(angle));
}

__device__ __forceinline__ TokenNumbers numbers_of(const BackwardJobCuda& job, int h,
                                                   std::int64_t token) {
  const int head = job.first_head + h;
  const std::int64_t at = token * job.columns.row_stride + head;
  return token_numbers(job.sizes, job.columns.dt_raw[at], job.params.dt_bias[head],
                       job.columns.decay_raw[at], job.columns.trap_raw[at]);
}

// A warp takes a chunk of one head, which has no more tokens than a warp lanes.
__global__ void __launch_bounds__(kPrepareThreads) chunk_terms_kernel(const BackwardJobCuda job) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int chunk =
      static_cast<int>(blockIdx.x) * kPrepareWarps + static_cast<int>(threadIdx.x) / kWarpLanes;
  if (chunk >= job.chunks.count) return;
  const BackwardPiece piece = job.chunks.pieces[chunk];
  if (piece.begin == piece.end) return;
  const auto h = static_cast<int>(blockIdx.y);
  const std::int64_t token = piece.begin + lane;
  const bool is_inside = token < piece.end;
  TokenNumbers own{};
  ChunkTerms terms{};
  if (is_inside) {
    own = numbers_of(job, h, token);
    terms.dt = own.dt;
    terms.now = static_cast<float>(own.now);
    terms.carry = static_cast<float>(own.carry);
    double source = own.now;
    if (token + 1 < job.cu_seqlens[piece.sequence + 1]) {
      source = __dadd_rn(source, numbers_of(job, h, token + 1).carry);
    }
    terms.source = static_cast<float>(source);
  }
  terms.sum = warp_inclusive_sum(own.log_decay, lane);
  const double end = __shfl_sync(0xffffffffu, terms.sum, piece.end - piece.begin - 1);
  if (!is_inside) return;
  terms.decay = static_cast<float>(exp(terms.sum));
  terms.to_end = static_cast<float>(exp(end - terms.sum));
  job.terms[job.token_at(h, token)] = terms;
}

// One angle of a head in a chunk or a sequence.
struct AnglePlace {
  int angle;
  int h;
  std::int64_t of;  // chunk or sequence

  __device__ AnglePlace(const BackwardJobCuda& job) {
    const std::int64_t i = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
    angle = static_cast<int>(i % job.sizes.angles);
    h = static_cast<int>(i / job.sizes.angles % job.heads);
    of = i / job.sizes.angles / job.heads;
  }
};

// How far a chunk moves its phases.
__global__ void __launch_bounds__(kPrepareThreads) move_phases_kernel(const BackwardJobCuda job) {
  const AnglePlace at(job);
  if (at.of >= job.chunks.count) return;
  const BackwardPiece piece = job.chunks.pieces[at.of];
  std::uint32_t turns = 0;
  for (std::int64_t token = piece.begin; token < piece.end; ++token) {
    bool finite = true;
    turns += turns_moved(job.turn_rates[token * job.sizes.angles + at.angle],
                         turning(job.sizes, job.terms[job.token_at(at.h, token)].dt), finite);
  }
  job.turns[job.chunk_at(at.of, at.h) * job.sizes.angles + at.angle] = turns;
}

// From how far chunks move phases to where they are before each.
__global__ void __launch_bounds__(kPrepareThreads) sum_phases_kernel(const BackwardJobCuda job) {
  const AnglePlace at(job);
  if (at.of >= job.sequences) return;
  const int head = job.first_head + at.h;
  std::uint32_t turns = job.states.turns[job.slots[at.of] * job.states.turns_stride +
                                         std::int64_t{head} * job.sizes.angles + at.angle];
  const int end = job.chunks.first[at.of + 1];
  for (int chunk = job.chunks.first[at.of]; chunk < end; chunk += 2 * kBatch) {
    const auto place = [&](int j) -> std::uint32_t& {
      return job.turns[job.chunk_at(chunk + j, at.h) * job.sizes.angles + at.angle];
    };
    std::uint32_t moved[2 * kBatch];
#pragma unroll
    for (int j = 0; j < 2 * kBatch; ++j) moved[j] = chunk + j < end ? place(j) : 0;
#pragma unroll
    for (int j = 0; j < 2 * kBatch; ++j) {
      if (chunk + j >= end) continue;
      place(j) = turns;
      turns += moved[j];
    }
  }
}

__global__ void __launch_bounds__(kPrepareThreads) rotations_kernel(const BackwardJobCuda job) {
  const AnglePlace at(job);
  if (at.of >= job.chunks.count) return;
  const BackwardPiece piece = job.chunks.pieces[at.of];
  const int angles = job.sizes.angles;
  std::uint32_t turns = job.turns[job.chunk_at(at.of, at.h) * angles + at.angle];
  for (std::int64_t token = piece.begin; token < piece.end; ++token) {
    bool finite = true;
    turns += turns_moved(job.turn_rates[token * angles + at.angle],
                         turning(job.sizes, job.terms[job.token_at(at.h, token)].dt), finite);
    float* to = job.rotations + job.token_at(at.h, token) * 2 * angles + at.angle;
    cos_sin_of_turns(turns, finite, to[0], to[angles]);
  }
}

// Once for all heads.
void prepare_tokens(const BackwardJobCuda& job, cudaStream_t stream) {
  const TokenSizes& sizes = job.sizes;
  const dim3 grid(grid_blocks(job.tokens * sizes.rank * sizes.groups, kPrepareWarps), 2);
  backward_norm_rows_kernel<<<grid, kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: rows of B and C");
  if (sizes.angles == 0) return;
  backward_turn_rates_kernel<<<grid_blocks(job.tokens * sizes.angles, kPrepareThreads),
                               kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: rates of phases");
}

// For the heads in hand.
void prepare_heads(const BackwardJobCuda& job, cudaStream_t stream) {
  const dim3 grid(grid_blocks(job.chunks.count, kPrepareWarps), static_cast<unsigned>(job.heads));
  chunk_terms_kernel<<<grid, kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: decays");
  const std::int64_t angles = std::int64_t{job.heads} * job.sizes.angles;
  if (angles == 0) return;
  const unsigned of_chunks = grid_blocks(job.chunks.count * angles, kPrepareThreads);
  const unsigned of_sequences = grid_blocks(job.sequences * angles, kPrepareThreads);
  move_phases_kernel<<<of_chunks, kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: moves of phases");
  sum_phases_kernel<<<of_sequences, kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: phases");
  rotations_kernel<<<of_chunks, kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: rotations");
}

}  // namespace
}  // namespace mamba3
