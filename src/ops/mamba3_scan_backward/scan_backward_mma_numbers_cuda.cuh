// What a chunk leaves for the gradients of its tokens' numbers: of phases, while the chunk before
// is prepared, and of decays and weights, by two warps while others make the scores of the chunk
// before. Notation: docs/SEMANTICS.md, section 9. Every sum adds products that belong to it; none
// is a difference of longer sums.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_products_cuda.cuh"

namespace mamba3 {
namespace {

// By one thread, when the memory is open.
template <class S>
__device__ __forceinline__ void open_numbers(BackwardMemory<S>& m) {
  barrier_init(&m.inside_came, kWarpArrivals);
  barrier_init(&m.phases_came, kPhaseWarps * kWarpArrivals);
}
template <class S>
__device__ __forceinline__ void close_numbers(BackwardMemory<S>& m) {
  barrier_close(&m.inside_came);
  barrier_close(&m.phases_came);
}

// Two neighbouring rows of a lane.
struct RowPair {
  float v[2];

  // Sums over the rows before each.
  __device__ __forceinline__ RowPair before(unsigned lane) const {
    float sum = v[0] + v[1];
#pragma unroll
    for (unsigned step = 1; step < kWarpLanes; step *= 2) {
      const float other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
    float own = __shfl_up_sync(0xffffffffu, sum, 1);
    if (lane == 0) own = 0;
    return {{own, own + v[0]}};
  }
  // Sums over each row and those behind it, of rows in kLanes lanes.
  template <unsigned kLanes>
  __device__ __forceinline__ RowPair from(unsigned lane) const {
    float sum = v[0] + v[1];
#pragma unroll
    for (unsigned step = 1; step < kLanes; step *= 2) {
      const float other = __shfl_down_sync(0xffffffffu, sum, step, kLanes);
      if (lane % kLanes + step < kLanes) sum += other;
    }
    float behind = __shfl_down_sync(0xffffffffu, sum, 1, kLanes);
    if (lane % kLanes == kLanes - 1) behind = 0;
    return {{v[0] + (v[1] + behind), v[1] + behind}};
  }
};

template <class F>
__device__ __forceinline__ RowPair row_pair(unsigned lane, const F& f) {
  return {{f(2 * lane), f(2 * lane + 1)}};
}

struct RowPairSum {
  RowPair sum;

  __device__ __forceinline__ void add(const RowPair& more) {
    sum.v[0] += more.v[0];
    sum.v[1] += more.v[1];
  }
};

// To what a tile's rows read of its own columns before, what tiles below read of them.
template <class S>
__device__ __forceinline__ void add_inside(int parity, unsigned lane, BackwardMemory<S>& m) {
  const ChunkDecays<S>& decays = m.decays[parity];
  ChunkSums<S>& sums = m.sums[parity];
  const unsigned tile = lane / 8;                                          // of the lane's rows
  const auto is_first = [](unsigned row) { return row % S::kRank == 0; };  // of a token
  RowPairSum out{row_pair(lane, [&](unsigned row) {
    const unsigned token = row / S::kRank;
    return is_first(row) ? sums.inside[0][token] + sums.inside[1][token] : 0.0f;
  })};
#pragma unroll
  for (unsigned below = 1; below < kRowTiles; ++below) {
    const RowPair read = row_pair(lane, [&](unsigned row) {
      return tile < below ? sums.between[below][row] * decays.terms[row / S::kRank].fill : 0.0f;
    });
    const RowPair before = read.before(lane);
    if (tile < below) out.add(before);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned row = 2 * lane + i;
    if (is_first(row)) sums.inside[0][row / S::kRank] = out.sum.v[i];
  }
  arrive_warp(&m.inside_came, lane);
}

// All but what add_inside() finds.
template <class S>
__device__ __forceinline__ RowPair log_decay_gradients(const ChunkSums<S>& sums,
                                                       const ChunkDecays<S>& decays, unsigned lane,
                                                       const RowPair& ends) {
  const unsigned tile = lane / 8;  // of the lane's rows
  // What rows from there on to the end of their tile read of tiles before.
  RowPairSum out{row_pair(lane, [&](unsigned row) {
                   float sum = 0;
#pragma unroll
                   for (unsigned before = 0; before < kRowTiles; ++before) {
                     if (before < tile) sum += sums.between[before][row];
                   }
                   return sum;
                 }).template from<8>(lane)};
  // What read-outs from there on read of the state before the chunk.
  out.add(row_pair(lane, [&](unsigned row) {
            return decays.start_decay[row / S::kRank] * (sums.start[0][row] + sums.start[1][row]);
          }).template from<kWarpLanes>(lane));
  // What the state behind the chunk has of tokens before, and of the state before the chunk.
  out.add(RowPair{{decays.fade[2 * lane / S::kRank] * ends.v[0],
                   decays.fade[(2 * lane + 1) / S::kRank] * ends.v[1]}}
              .before(lane));
  float whole = 0;
#pragma unroll
  for (const float part : sums.states) whole += part;
  whole *= decays.whole;
  out.add({{whole, whole}});
  return out.sum;
}

// Gradients of a token's log decay, of its `now` and of the next one's `carry`: by a warp, beside
// the one that adds up what is inside the chunk.
template <class S>
__device__ __forceinline__ void tell_numbers(const BackwardMmaJob& job, const MmaPlace& at,
                                             const BackwardChunk& chunk, int parity, unsigned turn,
                                             BackwardMemory<S>& m) {
  const ChunkDecays<S>& decays = m.decays[parity];
  const ChunkSums<S>& sums = m.sums[parity];
  const unsigned lane = at.lane;
  const RowPair ends =
      row_pair(lane, [&](unsigned row) { return sums.end[0][row] + sums.end[1][row]; });
  RowPairSum log_decays{log_decay_gradients(sums, decays, lane, ends)};
  barrier_wait(&m.inside_came, turn);
  log_decays.add(row_pair(lane, [&](unsigned row) { return sums.inside[0][row / S::kRank]; }));
  float sources[2], now[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const unsigned row = 2 * lane + i;
    float sum = decays.end_decay[row / S::kRank] * ends.v[i];
#pragma unroll
    for (unsigned below = 0; below < kRowTiles; ++below) {
      if (below >= lane / 8) sum += sums.between[below][row];
    }
    sources[i] = sum;
    now[i] = sums.now[row];
  }
  if constexpr (S::kRank > 1) {
    sources[0] += sources[1];
    now[0] += now[1];
  }
  if constexpr (S::kRank == 4) {
    sources[0] += __shfl_down_sync(0xffffffffu, sources[0], 1);
    now[0] += __shfl_down_sync(0xffffffffu, now[0], 1);
    if (lane % 2 != 0) return;
  }
#pragma unroll
  for (int i = 0; i < (S::kRank == 1 ? 2 : 1); ++i) {
    const auto token = static_cast<int>((2 * lane + i) / S::kRank);
    if (token >= chunk.tokens) continue;
    const std::int64_t to = at.head * job.scan.tokens + chunk.begin + token;
    job.grad_log_decay[to] = log_decays.sum.v[i];
    job.grad_now[to] = now[i] + sources[i];
    if (chunk.begin + token + 1 < at.end) job.grad_carry[to + 1] = sources[i];
  }
}

// kPhaseWarps warps: each has a group of tokens, and a lane one angle. From what a token's phase
// gets of its own rows to what it gets of all behind it.
template <class S>
__device__ __forceinline__ void tell_phases(const BackwardMmaJob& job, const MmaPlace& at,
                                            const BackwardChunk& chunk, int parity, unsigned turn,
                                            BackwardMemory<S>& m) {
  constexpr int kOwn = S::kTokens / static_cast<int>(S::kPhaseGroups);
  const unsigned own_group = at.warp % S::kPhaseGroups;
  const auto angle = static_cast<int>(at.warp / S::kPhaseGroups * kWarpLanes + at.lane);
  const auto first = static_cast<int>(own_group) * kOwn;
  const int angles = job.scan.sizes.angles;
  const bool turns = angle < angles;
  float own[kOwn];
  if (turns) {
    float sum = 0;
#pragma unroll
    for (int t = kOwn - 1; t >= 0; --t) {
      own[t] = sum += m.grad_turns[(first + t) * (S::kPairs + 4) + angle];
    }
    m.group_phase[own_group][angle] = sum;
  }
  arrive_warp(&m.phases_came, at.lane);
  barrier_wait(&m.phases_came, turn);
  if (!turns) return;
  float behind = m.phase[parity][angle];
#pragma unroll
  for (unsigned group = S::kPhaseGroups - 1; group > 0; --group) {
    if (group > own_group) behind += m.group_phase[group][angle];
  }
  float* to = job.grad_phase + (at.head * job.scan.tokens + chunk.begin + first) * angles + angle;
  const int there = chunk.tokens - first;
#pragma unroll
  for (int t = 0; t < kOwn; ++t, to += angles) {
    if (t < there) *to = own[t] + behind;
  }
  if (own_group == 0) m.phase[parity ^ 1][angle] = own[0] + behind;
}

}  // namespace
}  // namespace mamba3
