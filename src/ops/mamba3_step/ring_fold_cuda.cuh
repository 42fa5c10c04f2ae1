// A warp's pass over its quarter of a state: the fold of the ring into it, and the read-out.
#pragma once

#include <cstdint>

#include "ops/mamba3_step/ring_item_cuda.cuh"

namespace mamba3 {
namespace {

// One thread's part of the state: four columns of some pieces of eight rows, one below the other,
// which its half of the warp shares.
template <int N>
struct StatePart {
  static constexpr int kPieces = N / kTeamWarps / kLanePairs / 2;
  int column;
  int first_piece;  // of the warp's
  float h[kPieces][kLanePairs][4];

  __device__ explicit StatePart(const Team& team)
      : column(team.lane % (kHeadDim / 4) * 4), first_piece(team.lane / (kHeadDim / 4) * kPieces) {}
  // Where a piece begins in a state.
  __device__ __forceinline__ int offset(bool mimo, const Team& team, int piece) const {
    const int number = first_piece + piece;
    const int pair = number / 2 * kPairStep + kLanePairs * team.warp;
    const int row = mimo ? pair + number % 2 * (N / 2) : 2 * pair + number % 2 * kLanePairs;
    return row * kHeadDim + column;
  }
  __device__ __forceinline__ void load(const float* from, int piece) {
#pragma unroll
    for (int i = 0; i < kLanePairs; ++i) load_vector<4>(from + i * kHeadDim, h[piece][i]);
  }
  __device__ __forceinline__ void load(const float* state, bool mimo, const Team& team) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) load(state + offset(mimo, team, piece), piece);
  }
  // In assembly, because the compiler makes four stores of one.
  __device__ __forceinline__ void store(float* to, int piece) const {
#pragma unroll
    for (int i = 0; i < kLanePairs; ++i) {
      asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                       __cvta_generic_to_global(to + i * kHeadDim)),
                   "f"(h[piece][i][0]), "f"(h[piece][i][1]), "f"(h[piece][i][2]),
                   "f"(h[piece][i][3])
                   : "memory");
    }
  }
  __device__ __forceinline__ void scale(float decay) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int i = 0; i < kLanePairs; ++i) {
        for (int v = 0; v < 4; ++v) h[piece][i][v] *= decay;
      }
    }
  }
  // h += k x^T, k from the first of the pieces on.
  __device__ __forceinline__ void add_outer(const float* k, const float (&x)[4]) {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int i = 0; i < kLanePairs; i += 4) {
        float part[4];
        load_vector<4>(k + piece * kLanePairs + i, part);
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          for (int v = 0; v < 4; ++v) {
            h[piece][i + u][v] = fmaf(part[u], x[v], h[piece][i + u][v]);
          }
        }
      }
    }
  }
  // sums += q^T h of one piece
  __device__ __forceinline__ void read(const float* q, int piece, float (&sums)[4]) const {
#pragma unroll
    for (int i = 0; i < kLanePairs; i += 4) {
      float part[4];
      load_vector<4>(q + (first_piece + piece) * kLanePairs + i, part);
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        for (int v = 0; v < 4; ++v) sums[v] = fmaf(part[u], h[piece][i + u][v], sums[v]);
      }
    }
  }
};

// h = decay h + sum over the ring of weight K X, or of the canonical tuple's own K and X. The
// groups of lanes make the same rank of an entry's K each, then all lanes add the rows.
template <int T, int N, int R>
__device__ void fold(const RingJob& job, const Team& team, TeamMemory<N, R>& memory,
                     RingSegment<N, R>& segment, int turn, int count, StatePart<N>& part) {
  constexpr int kQuarter = TeamMemory<N, R>::kQuarter;
  const bool mimo = R > 1 || job.sizes.mimo;
  const int entries = count > 0 ? count : 1;
  float* k_rows = memory.parts[team.warp];
  Phases<T> phases(job.sizes, team, memory.turns(job));
  part.scale(memory.decays[turn % 2].x);
#pragma unroll 1
  for (int begin = 0; begin < entries; begin += kLaneGroups) {
    Moves<T, 1> moves(job, team, memory, segment, begin, count);
    const Rotation<T> rotation = phases.next(job.sizes, team, moves);
    const int here = min(entries - begin, kLaneGroups);
    const int own = begin + min(team.group, here - 1);
#pragma unroll 1
    for (int r = 0; r < R; ++r) {
      Pairs<N> k;
      if (count > 0) {
        Pairs<N> bias;
        load_pairs<N>(segment.in_b(own) + r * N, team, k);
        load_state_order<N>(memory.in_b_bias + r * N, mimo, team, bias);
        bias_and_turn<N>(rotation, bias, k);
      } else {
        load_state_order<N>(memory.state_k() + r * N, mimo, team, k);
      }
      const float weight = memory.weights[own];
#pragma unroll
      for (int v = 0; v < kPairs<N>; ++v) k[v] = make_float2(weight * k[v].x, weight * k[v].y);
      store_quarter<N>(k, mimo, team, k_rows + team.group * kQuarter);
      __syncwarp();
      // The state's own X has no entries.
      const float* x = (count > 0 ? memory.x() + begin * kHeadDim : memory.state_v()) + part.column;
      const float* row = k_rows + part.first_piece * kLanePairs;
      float ranked[4];
      if (mimo) load_vector<4>(memory.mimo_x + r * kHeadDim + part.column, ranked);
#pragma unroll 1
      for (int left = here; left > 0; --left, x += kHeadDim, row += kQuarter) {
        float values[4];
        load_vector<4>(x, values);
        if (mimo) {
          for (int v = 0; v < 4; ++v) values[v] *= ranked[v];
        }
        part.add_outer(row, values);
      }
      __syncwarp();
    }
  }
}

// A warp's part of Q h, from both of its halves.
template <int N, int R>
__device__ __forceinline__ void store_read_out(const Team& team, TeamMemory<N, R>& memory,
                                               const StatePart<N>& part, float (&sums)[R][4]) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      sums[r][v] += __shfl_xor_sync(0xffffffffu, sums[r][v], kWarpLanes / 2);
    }
    if (team.lane < kWarpLanes / 2) {
      store_vector<4>(sums[r], memory.parts[team.warp] + r * kHeadDim + part.column);
    }
  }
}

}  // namespace
}  // namespace mamba3
