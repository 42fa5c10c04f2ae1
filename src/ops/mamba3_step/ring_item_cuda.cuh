// One item of the step with a ring, by one team: phases and decays of the ring's tokens, scores of
// the new token's Q with each K, and, every so many tokens, the fold of the ring into the state.
#pragma once

#include <cstdint>

#include "ops/mamba3_step/ring_memory_cuda.cuh"

namespace mamba3 {
namespace {

// A thread's place in its team.
struct Team {
  int number;
  int thread;
  int warp;
  int lane;

  __device__ explicit Team(int number_in)
      : number(number_in),
        thread(static_cast<int>(threadIdx.x) % kTeamThreads),
        warp(thread / kWarpLanes),
        lane(thread % kWarpLanes) {}
  __device__ void sync() const { sync_threads(1 + number, kTeamThreads); }
};

// What a lane holds of a row of B, C, K or Q: pairs kPairs * lane and following.
template <int N>
constexpr int kPairs = N / (2 * kWarpLanes);

template <int N>
using Pairs = float[2 * kPairs<N>];

// From a row that lies pair after pair.
template <int N>
__device__ __forceinline__ void load_pairs(const float* row, int lane, Pairs<N>& out) {
  if constexpr (kPairs<N> == 2) {
    const float4 v = reinterpret_cast<const float4*>(row)[lane];
    out[0] = v.x;
    out[1] = v.y;
    out[2] = v.z;
    out[3] = v.w;
  } else {
    const float2 v = reinterpret_cast<const float2*>(row)[lane];
    out[0] = v.x;
    out[1] = v.y;
  }
}

// From and to a row in the order of the state.
template <int N>
__device__ __forceinline__ void load_state_order(const float* row, bool mimo, int lane,
                                                 Pairs<N>& out) {
  if (!mimo) return load_pairs<N>(row, lane, out);
  for (int v = 0; v < kPairs<N>; ++v) {
    const int i = kPairs<N> * lane + v;
    out[2 * v] = row[first_of_pair<N>(true, i)];
    out[2 * v + 1] = row[second_of_pair<N>(true, i)];
  }
}

template <int N>
__device__ __forceinline__ void store_state_order(const Pairs<N>& in, bool mimo, int lane,
                                                  float* row) {
  for (int v = 0; v < kPairs<N>; ++v) {
    const int i = kPairs<N> * lane + v;
    row[first_of_pair<N>(mimo, i)] = in[2 * v];
    row[second_of_pair<N>(mimo, i)] = in[2 * v + 1];
  }
}

// A lane's part of the rotation of one token.
template <int N>
struct Rotation {
  float cosine[kPairs<N>];
  float sine[kPairs<N>];

  template <int R>
  __device__ Rotation(const TokenSizes& sizes, const RingScratch<N, R>& s, int token, int lane) {
#pragma unroll
    for (int v = 0; v < kPairs<N>; ++v) {
      const int i = kPairs<N> * lane + v;
      const bool turns = i < sizes.angles;
      cosine[v] = turns ? s.cosine[token * sizes.angles + i] : 1.0f;
      sine[v] = turns ? s.sine[token * sizes.angles + i] : 0.0f;
    }
  }
  // The same roundings as rotate_row().
  __device__ __forceinline__ void turn(Pairs<N>& row) const {
#pragma unroll
    for (int v = 0; v < kPairs<N>; ++v) {
      const float a = row[2 * v], b = row[2 * v + 1];
      row[2 * v] = __fmaf_rn(-b, sine[v], __fmul_rn(a, cosine[v]));
      row[2 * v + 1] = __fmaf_rn(b, cosine[v], __fmul_rn(a, sine[v]));
    }
  }
};

template <int N>
__device__ __forceinline__ void bias_and_turn(const Rotation<N>& rotation, const Pairs<N>& bias,
                                              Pairs<N>& row) {
#pragma unroll
  for (int v = 0; v < 2 * kPairs<N>; ++v) row[v] = __fadd_rn(row[v], bias[v]);
  rotation.turn(row);
}

// How far each token moves each phase, by all warps but the last; the cosine's place keeps whether
// it is a NaN. Tokens of the ring, and the new one unless it is null.
template <int N, int R>
__device__ void move_phases(const TokenSizes& sizes, int ring_tokens, const Team& team,
                            const RingTile<N, R>& tile, const RingSegment<N, R>& segment,
                            const RingScratch<N, R>& s, int count, const RingToken* fresh) {
  const int tokens = count + (fresh != nullptr ? 1 : 0);
  for (int j = team.warp; j < tokens; j += kTeamWarps - 1) {
    const double dt = j < count ? tile.tokens[j].dt : fresh->dt;
    const double* half_tanh = segment.half_tanh + (j < count ? j : ring_tokens) * sizes.angles;
    for (int i = team.lane; i < sizes.angles; i += kWarpLanes) {
      bool finite = true;
      s.moves[j * sizes.angles + i] = turns_moved(half_tanh[i], dt, finite);
      s.cosine[j * sizes.angles + i] = finite ? 0.0f : nanf("");
    }
  }
}

// Phases, exactly: sums of turns. Those after entry `base_token` become the state's.
template <int N, int R>
__device__ void turn_phases(const TokenSizes& sizes, const Team& team, const RingTile<N, R>& tile,
                            const RingScratch<N, R>& s, int tokens, int base_token,
                            std::uint32_t* base) {
  for (int j = team.warp; j < tokens; j += kTeamWarps) {
    for (int i = team.lane; i < sizes.angles; i += kWarpLanes) {
      std::uint32_t turns = tile.turns[i];
#pragma unroll 8
      for (int u = 0; u <= j; ++u) turns += s.moves[u * sizes.angles + i];
      if (j == base_token) base[i] = turns;
      const int at = j * sizes.angles + i;
      const bool finite = s.cosine[at] == 0.0f;
      cos_sin_of_turns(turns, finite, s.cosine[at], s.sine[at]);
    }
  }
}

// exp of a sum of log-decays, as near as a float's exp; the sum keeps a double's digits.
__device__ __forceinline__ float decay_of(double sum) {
  const auto high = static_cast<float>(sum);
  const float e = expf(high);
  const auto low = static_cast<float>(__dadd_rn(sum, -static_cast<double>(high)));
  // Where high is infinite, low is a NaN.
  return high > -200.0f ? fmaf(e, low, e) : e;
}

// Weights of the ring's tokens and of the state, by one warp: decays are exponentials of sums of
// the log-decays that follow, so a strong one takes no digits from those after it. `fresh` null:
// nothing follows, the newest entry counts with its gamma alone.
template <int N, int R>
__device__ void weigh_entries(const RingTile<N, R>& tile, const RingScratch<N, R>& s, int count,
                              bool fold, const RingToken* fresh, int lane) {
  double sum =
      lane < count ? tile.tokens[lane].log_decay : 0.0;  // of this entry and those after it
  for (int step = 1; step < kMostRingTokens; step *= 2) {
    sum = __dadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, step));
  }
  const double own = fresh != nullptr ? fresh->log_decay : 0.0;
  const double after = __dadd_rn(__shfl_down_sync(0xffffffffu, sum, 1), fold ? 0.0 : own);
  const double all = __shfl_sync(0xffffffffu, sum, 0);
  constexpr int kFirstDecay = kMostRingTokens;  // lanes behind the entries'
  double exponent = after;
  if (lane == kFirstDecay) exponent = all;
  if (lane == kFirstDecay + 1) exponent = fold ? own : __dadd_rn(all, own);
  const float decay = decay_of(exponent);
  if (lane < count) {
    float weight = tile.tokens[lane].now;
    if (lane + 1 < count) {
      weight += tile.tokens[lane + 1].carry;
    } else if (fresh != nullptr) {
      weight += fresh->carry;
    }
    s.weights[lane] = weight * decay;
  } else if (lane >= kFirstDecay && lane < kFirstDecay + 2) {
    s.decays[lane - kFirstDecay] = decay;
    if (count == 0) s.weights[0] = fresh != nullptr ? fresh->carry : 0.0f;
  }
}

// Sums C values over the lanes: a lane gets the sum number lane / (kWarpLanes / C). Each exchange
// halves the values or, with one left, the lanes that still differ.
template <int C, int kMask = kWarpLanes / 2>
__device__ __forceinline__ float sum_over_lanes(const float (&values)[C], int lane) {
  if constexpr (C == 1) {
    float sum = values[0];
#pragma unroll
    for (int mask = kMask; mask >= 1; mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    return sum;
  } else {
    const bool upper = (lane & kMask) != 0;
    float half[C / 2];
#pragma unroll
    for (int i = 0; i < C / 2; ++i) {
      const float send = upper ? values[i] : values[i + C / 2];
      const float keep = upper ? values[i + C / 2] : values[i];
      half[i] = keep + __shfl_xor_sync(0xffffffffu, send, kMask);
    }
    return sum_over_lanes<C / 2, kMask / 2>(half, lane);
  }
}

// Q of the new token, and its weighted scores with entries [first, count] of which the last is
// itself.
template <int N, int R>
__device__ void score(const RingJob& job, const Team& team, const RingTile<N, R>& tile,
                      const RingSegment<N, R>& segment, const RingScratch<N, R>& s, int first,
                      int count, float now) {
  const TokenSizes& sizes = job.sizes;
  const int lane = team.lane;
  const bool mimo = R > 1 || sizes.mimo;
  Pairs<N> q[R], bias[R];
  {
    const Rotation<N> rotation(sizes, s, count, lane);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      load_pairs<N>(segment.out_c + r * N, lane, q[r]);
      load_state_order<N>(tile.out_c_bias + r * N, mimo, lane, bias[r]);
      bias_and_turn<N>(rotation, bias[r], q[r]);
      if (team.warp == r) store_state_order<N>(q[r], mimo, lane, s.q + r * N);
      load_state_order<N>(tile.in_b_bias + r * N, mimo, lane, bias[r]);
    }
  }
  for (int j = first + team.warp; j <= count; j += kTeamWarps) {
    const Rotation<N> rotation(sizes, s, j, lane);
    const float* rows = j < count ? segment.ring_b + j * R * N : segment.in_b;
    float sums[R * R];
#pragma unroll
    for (int of = 0; of < R; ++of) {
      Pairs<N> k;
      load_pairs<N>(rows + of * N, lane, k);
      bias_and_turn<N>(rotation, bias[of], k);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float sum = q[r][0] * k[0];
#pragma unroll
        for (int v = 1; v < 2 * kPairs<N>; ++v) sum = fmaf(q[r][v], k[v], sum);
        sums[r * R + of] = sum;
      }
    }
    const float sum = sum_over_lanes<R * R>(sums, lane);
    constexpr int kLanesEach = kWarpLanes / (R * R);
    if (lane % kLanesEach == 0) {
      const int r = lane / kLanesEach / R;
      const int of = lane / kLanesEach % R;
      s.scores[r * s.score_pitch + j * R + of] = sum * (j < count ? s.weights[j] : now);
    }
  }
}

// One thread's part of the state: kRows rows one below the other, four columns.
template <int N>
struct StatePiece {
  static constexpr int kRows = N * kHeadDim / kTeamThreads / 4;
  int column;
  int row;
  float h[kRows][4];

  __device__ explicit StatePiece(const Team& team)
      : column(team.thread % (kHeadDim / 4) * 4), row(team.thread / (kHeadDim / 4) * kRows) {}
  __device__ __forceinline__ void load(const float* ssm) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) load_vector<4>(ssm + (row + i) * kHeadDim + column, h[i]);
  }
  // In assembly, because the compiler makes four stores of one.
  __device__ __forceinline__ void store(float* ssm) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(
                       __cvta_generic_to_global(ssm + (row + i) * kHeadDim + column)),
                   "f"(h[i][0]), "f"(h[i][1]), "f"(h[i][2]), "f"(h[i][3])
                   : "memory");
    }
  }
  __device__ __forceinline__ void scale(float decay) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < 4; ++v) h[i][v] *= decay;
    }
  }
};

template <int kCount>
__device__ __forceinline__ void load_row_part(const float* from, float (&to)[kCount]) {
  float part[4];
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    load_vector<4>(from + i, part);
    for (int j = 0; j < 4; ++j) to[i + j] = part[j];
  }
}

// Row `row` (entry, rank) of K, and of X with its weight, by one warp. Without entries they are the
// state's own.
template <int N, int R>
__device__ __forceinline__ void prepare_fold_row(const TokenSizes& sizes,
                                                 const RingTile<N, R>& tile,
                                                 const RingSegment<N, R>& segment,
                                                 const RingScratch<N, R>& s, int count, int row,
                                                 int lane) {
  const int entry = row / R, r = row % R;
  const bool mimo = R > 1 || sizes.mimo;
  float* k_row = s.k_rows + row % kFoldRows * N;
  Pairs<N> k;
  if (count > 0) {
    Pairs<N> bias;
    load_pairs<N>(segment.ring_b + row * N, lane, k);
    load_state_order<N>(tile.in_b_bias + r * N, mimo, lane, bias);
    bias_and_turn<N>(Rotation<N>(sizes, s, entry, lane), bias, k);
  } else {
    load_state_order<N>(tile.state_k() + r * N, mimo, lane, k);
  }
  store_state_order<N>(k, mimo, lane, k_row);
  const float* x = count > 0 ? tile.x + entry * kHeadDim : tile.state_v();
  const float weight = s.weights[entry];
  for (int p = lane; p < kHeadDim; p += kWarpLanes) {
    const float own = sizes.mimo ? x[p] * tile.mimo_x[r * kHeadDim + p] : x[p];
    s.x_rows[row % kFoldRows * kHeadDim + p] = weight * own;
  }
}

// h = decay h + sum over the ring of weight K X, or of the canonical tuple's own K and X.
template <int N, int R>
__device__ void fold(const TokenSizes& sizes, const Team& team, const RingTile<N, R>& tile,
                     const RingSegment<N, R>& segment, const RingScratch<N, R>& s, int count,
                     StatePiece<N>& piece) {
  constexpr int kRows = StatePiece<N>::kRows;
  const int rows = (count > 0 ? count : 1) * R;
  piece.scale(s.decays[0]);
  for (int begin = 0; begin < rows; begin += kFoldRows) {
    const int end = min(begin + kFoldRows, rows);
    for (int row = begin + team.warp; row < end; row += kTeamWarps) {
      prepare_fold_row(sizes, tile, segment, s, count, row, team.lane);
    }
    team.sync();
    const float* k_rows = s.k_rows + piece.row;
    const float* x_rows = s.x_rows + piece.column;
#pragma unroll 2
    for (int row = begin; row < end; ++row, k_rows += N, x_rows += kHeadDim) {
      float k[kRows], x[4];
      load_row_part<kRows>(k_rows, k);
      load_vector<4>(x_rows, x);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        for (int v = 0; v < 4; ++v) piece.h[i][v] = fmaf(k[i], x[v], piece.h[i][v]);
      }
    }
    team.sync();
  }
}

// Each warp's part of Q h.
template <int N, int R>
__device__ void read_state(const Team& team, const RingScratch<N, R>& s,
                           const StatePiece<N>& piece) {
  constexpr int kRows = StatePiece<N>::kRows;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    float q[kRows], sums[4] = {};
    load_row_part<kRows>(s.q + r * N + piece.row, q);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < 4; ++v) sums[v] = fmaf(q[i], piece.h[i][v], sums[v]);
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) sums[v] += __shfl_xor_sync(0xffffffffu, sums[v], kWarpLanes / 2);
    if (team.lane < kWarpLanes / 2) {
      store_vector<4>(sums, s.partial + (team.warp * R + r) * kHeadDim + piece.column);
    }
  }
}

}  // namespace
}  // namespace mamba3
