// The end of an item: the warps' and the ring's parts of the read-out come together, y goes out,
// the new token enters the ring.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/mamba3_step/ring_item_cuda.cuh"

namespace mamba3 {
namespace {

// A thread's column of the head and its ranks, whose terms of y it adds up: neighbours have the
// others.
template <int R>
struct OutputPlace {
  static constexpr int kRanks = std::max(1, R* kHeadDim / kTeamThreads);
  static constexpr int kLanes = R / kRanks;  // of a column
  int column, rank;
  bool exists;
  __device__ explicit OutputPlace(const Team& team)
      : column(team.thread / kLanes % kHeadDim),
        rank(team.thread % kLanes * kRanks),
        exists(team.thread < kHeadDim * kLanes) {}
};

// Weighted scores of one rank with an entry's ranks, as they lie in memory.
template <int R>
struct alignas(R * sizeof(float)) RankScores {
  float of[R];
};

// What the ring's tokens that count and the new one add to the read-out of a thread's ranks.
template <int N, int R>
__device__ __forceinline__ void read_entries(const RingJob& job, TeamMemory<N, R>& memory,
                                             const RingStep& step, const OutputPlace<R>& at,
                                             float x, float (&out)[OutputPlace<R>::kRanks]) {
  constexpr int kRanks = OutputPlace<R>::kRanks;
  float sums[kRanks][R] = {};
  const int entries = step.scored();
  const float* scores = memory.scores(step.count) + at.rank * R;
  const float* values = memory.x() + at.column;
  const auto add = [&](int entry, float value) {
    const auto* ranks = reinterpret_cast<const RankScores<R>*>(scores + entry * R * R);
#pragma unroll
    for (int k = 0; k < kRanks; ++k) {
      const RankScores<R> row = ranks[k];
#pragma unroll
      for (int of = 0; of < R; ++of) sums[k][of] = fmaf(row.of[of], value, sums[k][of]);
    }
  };
#pragma unroll 4  // memory answers late
  for (int j = 0; j < entries; ++j) add(j, values[j * kHeadDim]);
  add(entries, x);
#pragma unroll
  for (int k = 0; k < kRanks; ++k) {
    out[k] = sums[k][0];
    if (R == 1 && !job.sizes.mimo) continue;
    out[k] *= memory.mimo_x[at.column];
#pragma unroll
    for (int of = 1; of < R; ++of) {
      out[k] = fmaf(sums[k][of], memory.mimo_x[of * kHeadDim + at.column], out[k]);
    }
  }
}

// Sums over the warps, skip, gate, sum over ranks.
template <int N, int R>
__device__ __forceinline__ void finish(const RingJob& job, const RingStep& step, int head,
                                       TeamMemory<N, R>& memory, const OutputPlace<R>& at,
                                       float decay, float skip) {
  constexpr int kRanks = OutputPlace<R>::kRanks;
  const bool mimo = R > 1 || job.sizes.mimo;
  const HeadGate gate{
      mimo ? memory.mimo_x : nullptr, memory.mimo_z, memory.mimo_o, skip, R, kHeadDim};
  float sums[kRanks];
  const float x = memory.columns[0][at.column], z = memory.columns[1][at.column];
  read_entries(job, memory, step, at, x, sums);
  float y = 0;
#pragma unroll
  for (int k = 0; k < kRanks; ++k) {
    const int rank = at.rank + k, i = rank * kHeadDim + at.column;
    float sum = memory.parts[0][i];
#pragma unroll
    for (int warp = 1; warp < kTeamWarps; ++warp) sum += memory.parts[warp][i];
    const float o = add_skip(gate, rank, at.column, x, fmaf(decay, sum, sums[k]));
    const float term = gated(gate, rank, at.column, z, o);
    y = k == 0 ? term : y + term;
  }
#pragma unroll
  for (int mask = 1; mask < OutputPlace<R>::kLanes; mask *= 2) {
    y += __shfl_xor_sync(0xffffffffu, y, mask);
  }
  if (at.rank > 0) return;
  const std::int64_t index = step.row * job.y_stride + head * kHeadDim + at.column;
  if (job.y_is_bf16) {
    static_cast<__nv_bfloat16*>(job.y)[index] = __float2bfloat16_rn(y);
  } else {
    static_cast<float*>(job.y)[index] = y;
  }
}

// x and the numbers of the new token enter the ring.
__device__ __forceinline__ void append_item(const RingJob& job, const RingStep& step, int head,
                                            const Team& team, const RingToken& fresh,
                                            const float* x) {
  const Mamba3Ring& ring = job.states.ring;
  const std::int64_t to = head * ring.tokens + step.entry;
  if (team.thread < kHeadDim) {
    ring_part(ring, ring.x, step.slot)[to * kHeadDim + team.thread] = x[team.thread];
  }
  if (team.thread == kTeamThreads - 1) ring_part(ring, ring.scalars, step.slot)[to] = fresh;
}

}  // namespace
}  // namespace mamba3
