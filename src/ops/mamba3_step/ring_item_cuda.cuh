// What a team's warps make of one item before its state is there. Each warp has a quarter of the
// pairs of rows of the state and does everything there: here phases, K, Q and scores with the
// ring's tokens. Only sums over the four are left for the team.
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
  int group;  // of lanes
  int place;  // in the group

  __device__ Team() : Team(static_cast<unsigned>(opaque(static_cast<int>(threadIdx.x)))) {}
  __device__ explicit Team(unsigned block_thread)
      : number(static_cast<int>(block_thread / kTeamThreads)),
        thread(static_cast<int>(block_thread % kTeamThreads)),
        warp(static_cast<int>(block_thread % kTeamThreads / kWarpLanes)),
        lane(static_cast<int>(block_thread % kWarpLanes)),
        group(static_cast<int>(block_thread % kWarpLanes / kLanePairs)),
        place(static_cast<int>(block_thread % kLanePairs)) {}
};

// Waits for the warps of a team and the one that serves it.
__device__ __forceinline__ void sync_team(int number) {
  sync_threads(1 + number, kServedThreads);
}

// A lane has this many pairs of a row of B, C, K or Q, and of the rows of the state.
template <int N>
constexpr int kPairs = N / (2 * kTeamWarps * kLanePairs);
constexpr int kPairStep = kTeamWarps * kLanePairs;

template <int N>
using Pairs = float2[kPairs<N>];

__device__ __forceinline__ int first_pair(const Team& team) {
  return kLanePairs * team.warp + team.place;
}

// Where the two parts of pair i are in a row.
template <int N>
__device__ __forceinline__ int first_of_pair(bool mimo, int i) {
  return mimo ? i : 2 * i;
}
template <int N>
__device__ __forceinline__ int second_of_pair(bool mimo, int i) {
  return mimo ? N / 2 + i : 2 * i + 1;
}

// From a row that lies pair after pair.
template <int N>
__device__ __forceinline__ void load_pairs(const float* row, const Team& team, Pairs<N>& out) {
#pragma unroll
  for (int v = 0; v < kPairs<N>; ++v) {
    out[v] = reinterpret_cast<const float2*>(row)[v * kPairStep + first_pair(team)];
  }
}

// From and to a row in the order of the state.
template <int N>
__device__ __forceinline__ void load_state_order(const float* row, bool mimo, const Team& team,
                                                 Pairs<N>& out) {
  if (!mimo) return load_pairs<N>(row, team, out);
#pragma unroll
  for (int v = 0; v < kPairs<N>; ++v) {
    const int i = v * kPairStep + first_pair(team);
    out[v] = make_float2(row[i], row[N / 2 + i]);
  }
}

template <int N>
__device__ __forceinline__ void store_state_order(const Pairs<N>& in, bool mimo, const Team& team,
                                                  float* row) {
#pragma unroll
  for (int v = 0; v < kPairs<N>; ++v) {
    const int i = v * kPairStep + first_pair(team);
    row[first_of_pair<N>(mimo, i)] = in[v].x;
    row[second_of_pair<N>(mimo, i)] = in[v].y;
  }
}

// From and to a warp's quarter of a row, which is in the order of its pieces of the state: eight
// rows each, which lie side by side there.
template <int N>
__device__ __forceinline__ void load_quarter(const float* row, bool mimo, const Team& team,
                                             Pairs<N>& out) {
#pragma unroll
  for (int v = 0; v < kPairs<N>; ++v) {
    const float* at = row + v * 2 * kLanePairs;
    out[v] = mimo ? make_float2(at[team.place], at[kLanePairs + team.place])
                  : reinterpret_cast<const float2*>(at)[team.place];
  }
}

template <int N>
__device__ __forceinline__ void store_quarter(const Pairs<N>& in, bool mimo, const Team& team,
                                              float* row) {
#pragma unroll
  for (int v = 0; v < kPairs<N>; ++v) {
    float* at = row + v * 2 * kLanePairs;
    if (mimo) {
      at[team.place] = in[v].x;
      at[kLanePairs + team.place] = in[v].y;
    } else {
      reinterpret_cast<float2*>(at)[team.place] = in[v];
    }
  }
}

// A lane's part of the rotation of one token. T: of its pairs, those that may be rotated.
template <int T>
struct Rotation {
  float cosine[T];
  float sine[T];

  // Turns of each pair, and whether the token's own move was finite.
  __device__ Rotation(const TokenSizes& sizes, const Team& team, const std::uint32_t (&turns)[T],
                      const bool (&finite)[T]) {
#pragma unroll
    for (int v = 0; v < T; ++v) {
      cosine[v] = 1.0f, sine[v] = 0.0f;
      if (v * kPairStep + kLanePairs * team.warp >= sizes.angles) continue;
      cos_sin_of_turns(turns[v], finite[v], cosine[v], sine[v]);
      if (v * kPairStep + first_pair(team) >= sizes.angles) cosine[v] = 1.0f, sine[v] = 0.0f;
    }
  }
  // The same roundings as rotate_row().
  template <int kCount>
  __device__ __forceinline__ void turn(float2 (&row)[kCount]) const {
#pragma unroll
    for (int v = 0; v < T; ++v) {
      const float a = row[v].x, b = row[v].y;
      row[v].x = __fmaf_rn(-b, sine[v], __fmul_rn(a, cosine[v]));
      row[v].y = __fmaf_rn(b, cosine[v], __fmul_rn(a, sine[v]));
    }
  }
};

template <int N, int T>
__device__ __forceinline__ void bias_and_turn(const Rotation<T>& rotation, const Pairs<N>& bias,
                                              Pairs<N>& row) {
#pragma unroll
  for (int v = 0; v < kPairs<N>; ++v) {
    row[v].x = __fadd_rn(row[v].x, bias[v].x);
    row[v].y = __fadd_rn(row[v].y, bias[v].y);
  }
  rotation.turn(row);
}

// How far a token moves pair v of a lane, in turns.
__device__ __forceinline__ std::uint32_t pair_moved(const TokenSizes& sizes, const Team& team,
                                                    int v, const double* half_tanh, double dt,
                                                    bool& finite) {
  const int i = v * kPairStep + first_pair(team);
  finite = true;
  return i < sizes.angles ? turns_moved(half_tanh[i], dt, finite) : 0u;
}

// How far the ring's first tokens move a lane's pairs: its group has every fourth of them.
template <int T>
struct Moves {
  static constexpr int kMost = kMostRingTokens / kLaneGroups;
  std::uint32_t turns[kMost][T] = {};  // the group's next token first
  std::uint32_t broken = 0;            // bit T i + v: turns[i][v] is not finite

  template <int N, int R>
  __device__ Moves(const RingJob& job, const Team& team, TeamMemory<N, R>& memory,
                   RingSegment<N, R>& segment, int count) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const int j = i * kLaneGroups + team.group;
      if (j >= count) continue;
      const double dt = memory.tokens(job)[j].dt;
#pragma unroll
      for (int v = 0; v < T; ++v) {
        bool finite;
        turns[i][v] = pair_moved(job.sizes, team, v, segment.half_tanh(job, j), dt, finite);
        if (!finite) broken |= 1u << (T * i + v);
      }
    }
  }
  __device__ __forceinline__ void drop_first() {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
#pragma unroll
      for (int v = 0; v < T; ++v) turns[i][v] = i + 1 < kMost ? turns[(i + 1) % kMost][v] : 0u;
    }
    broken >>= T;
  }
};

// The phases of a lane's pairs while the ring's tokens are walked, in turns: exact sums.
template <int T>
struct Phases {
  std::uint32_t turns[T];
  bool finite[T];

  // Before the ring's tokens.
  __device__ Phases(const TokenSizes& sizes, const Team& team, const std::uint32_t* base) {
#pragma unroll
    for (int v = 0; v < T; ++v) {
      const int i = v * kPairStep + first_pair(team);
      turns[v] = i < sizes.angles ? base[i] : 0u;
      finite[v] = true;
    }
  }
  __device__ __forceinline__ void move(const TokenSizes& sizes, const Team& team,
                                       const double* half_tanh, double dt) {
#pragma unroll
    for (int v = 0; v < T; ++v) {
      turns[v] += pair_moved(sizes, team, v, half_tanh, dt, finite[v]);
    }
  }
  // By all of them.
  __device__ __forceinline__ void move_through(const TokenSizes& sizes, const Team& team,
                                               const Moves<T>& moves) {
#pragma unroll
    for (int v = 0; v < T; ++v) {
      if (v * kPairStep + kLanePairs * team.warp >= sizes.angles) continue;
      std::uint32_t sum = 0;
#pragma unroll
      for (const auto& of_token : moves.turns) sum += of_token[v];
      sum += __shfl_xor_sync(0xffffffffu, sum, kLanePairs);
      turns[v] += sum + __shfl_xor_sync(0xffffffffu, sum, 2 * kLanePairs);
    }
  }
  // The rotation of the group's next token; then the phases are those behind all groups' next
  // tokens, which are dropped.
  __device__ __forceinline__ Rotation<T> next(const TokenSizes& sizes, const Team& team,
                                              Moves<T>& moves) {
    std::uint32_t own[T];
#pragma unroll
    for (int v = 0; v < T; ++v) {
      own[v] = 0;
      finite[v] = (moves.broken >> v & 1u) == 0;
      if (v * kPairStep + kLanePairs * team.warp >= sizes.angles) continue;
      std::uint32_t sum = moves.turns[0][v];
#pragma unroll
      for (int lanes = kLanePairs; lanes < kWarpLanes; lanes *= 2) {
        const std::uint32_t before = __shfl_up_sync(0xffffffffu, sum, lanes);
        if (team.lane >= lanes) sum += before;
      }
      own[v] = turns[v] + sum;
      turns[v] += __shfl_sync(0xffffffffu, sum, kWarpLanes - kLanePairs + team.place);
    }
    moves.drop_first();
    return Rotation<T>(sizes, team, own, finite);
  }
};

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
__device__ void weigh_entries(const RingJob& job, TeamMemory<N, R>& memory, int turn, int count,
                              bool fold, const RingToken* fresh, int lane) {
  const RingToken* tokens = memory.tokens(job);
  double sum = lane < count ? tokens[lane].log_decay : 0.0;  // of this entry and those after it
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
    float weight = tokens[lane].now;
    if (lane + 1 < count) {
      weight += tokens[lane + 1].carry;
    } else if (fresh != nullptr) {
      weight += fresh->carry;
    }
    memory.weights[turn % 2][lane] = weight * decay;
  } else if (lane >= kFirstDecay && lane < kFirstDecay + 2) {
    (lane == kFirstDecay ? memory.decays[turn % 2].x : memory.decays[turn % 2].y) = decay;
    if (count == 0) memory.weights[turn % 2][0] = fresh != nullptr ? fresh->carry : 0.0f;
  }
}

// Sums C values over a group's lanes; a lane keeps those whose numbers begin with its place. Each
// exchange halves the values or, with one left, the lanes that still differ.
template <int C, int kMask = kLanePairs / 2>
__device__ __forceinline__ void sum_over_group(const float (&values)[C], int lane, float* sums) {
  if constexpr (kMask == 0) {
#pragma unroll
    for (int i = 0; i < C; ++i) sums[i] = values[i];
  } else if constexpr (C == 1) {
    const float sum[1] = {values[0] + __shfl_xor_sync(0xffffffffu, values[0], kMask)};
    sum_over_group<1, kMask / 2>(sum, lane, sums);
  } else {
    const bool upper = (lane & kMask) != 0;
    float half[C / 2];
#pragma unroll
    for (int i = 0; i < C / 2; ++i) {
      const float send = upper ? values[i] : values[i + C / 2];
      const float keep = upper ? values[i + C / 2] : values[i];
      half[i] = keep + __shfl_xor_sync(0xffffffffu, send, kMask);
    }
    sum_over_group<C / 2, kMask / 2>(half, lane, sums);
  }
}

// Adds up C scores over the group and stores them: number i at to[i * stride].
template <int C>
__device__ __forceinline__ void store_scores(const float (&values)[C], const Team& team,
                                             bool exists, int stride, float* to) {
  constexpr int kEach = C > kLanePairs ? C / kLanePairs : 1;       // that a lane keeps
  constexpr int kLanesEach = C < kLanePairs ? kLanePairs / C : 1;  // with the same one
  float sums[kEach];
  sum_over_group<C>(values, team.lane, sums);
  if (!exists || team.place % kLanesEach != 0) return;
#pragma unroll
  for (int i = 0; i < kEach; ++i) to[(team.place / kLanesEach * kEach + i) * stride] = sums[i];
}

template <int N>
__device__ __forceinline__ float dot(const Pairs<N>& a, const Pairs<N>& b) {
  float sum = a[0].x * b[0].x;
  sum = fmaf(a[0].y, b[0].y, sum);
#pragma unroll
  for (int v = 1; v < kPairs<N>; ++v) {
    sum = fmaf(a[v].x, b[v].x, sum);
    sum = fmaf(a[v].y, b[v].y, sum);
  }
  return sum;
}

// Q of the new token, and this warp's part of its scores with the new K, by a group of lanes a
// rank. The new token's row of the segment is `row`, its scores' place `at`.
template <int N, int R, int T>
__device__ void score_new(const RingJob& job, const Team& team, TeamMemory<N, R>& memory,
                          RingSegment<N, R>& segment, const Rotation<T>& rotation, int row, int at,
                          Pairs<N> (&q)[R]) {
  constexpr int kQuarter = TeamMemory<N, R>::kQuarter;
  const bool mimo = R > 1 || job.sizes.mimo;
  const int own = team.group % R;
  float* q_rows = memory.q[team.warp];
  Pairs<N> bias, k;
  load_pairs<N>(segment.out_c + own * N, team, q[0]);
  load_state_order<N>(memory.out_c_bias + own * N, mimo, team, bias);
  bias_and_turn<N>(rotation, bias, q[0]);
  if (team.group < R) store_quarter<N>(q[0], mimo, team, q_rows + own * kQuarter);
  load_pairs<N>(segment.in_b(row) + own * N, team, k);
  load_state_order<N>(memory.in_b_bias + own * N, mimo, team, bias);
  bias_and_turn<N>(rotation, bias, k);
  __syncwarp();
  float sums[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    load_quarter<N>(q_rows + r * kQuarter, mimo, team, q[r]);
    sums[r] = dot<N>(q[r], k);
  }
  store_scores<R>(sums, team, team.group < R, R,
                  memory.score_parts(job, team.warp) + at * R * R + own);
}

// This warp's part of the scores with the ring's `count` tokens, by a group of lanes a token.
template <int T, int N, int R>
__device__ void score_ring(const RingJob& job, const Team& team, TeamMemory<N, R>& memory,
                           RingSegment<N, R>& segment, int count, Moves<T>& moves,
                           const Pairs<N> (&q)[R]) {
  const bool mimo = R > 1 || job.sizes.mimo;
  Phases<T> phases(job.sizes, team, memory.turns(job));
  Pairs<N> bias[R];
#pragma unroll
  for (int of = 0; of < R; ++of) {
    load_state_order<N>(memory.in_b_bias + of * N, mimo, team, bias[of]);
  }
#pragma unroll 1
  for (int begin = 0; begin < count; begin += kLaneGroups) {
    const Rotation<T> rotation = phases.next(job.sizes, team, moves);
    const int j = min(begin + team.group, count - 1);
    const float* rows = segment.in_b(j);
    float sums[R * R];
#pragma unroll
    for (int of = 0; of < R; ++of) {
      Pairs<N> k;
      load_pairs<N>(rows + of * N, team, k);
      bias_and_turn<N>(rotation, bias[of], k);
#pragma unroll
      for (int r = 0; r < R; ++r) sums[r * R + of] = dot<N>(q[r], k);
    }
    store_scores<R * R>(sums, team, begin + team.group < count, 1,
                        memory.score_parts(job, team.warp) + j * R * R);
  }
}

// Sums the warps' parts of the scores, the new token's last, and weighs them.
template <int N, int R>
__device__ __forceinline__ void weigh_scores(const RingJob& job, const Team& team,
                                             TeamMemory<N, R>& memory, const RingStep& step,
                                             int turn, float now) {
  const int entries = step.scored();
  const float* parts = memory.score_parts(job, 0);
  const int pitch = static_cast<int>(job.states.ring.tokens) * R * R;
#pragma unroll 1
  for (int i = team.thread; i < (entries + 1) * R * R; i += kTeamThreads) {
    float sum = parts[i];
#pragma unroll
    for (int warp = 1; warp < kTeamWarps; ++warp) sum += parts[warp * pitch + i];
    const int j = i / (R * R);
    memory.scores(step.count)[i] = sum * (j < entries ? memory.weights[turn % 2][j] : now);
  }
}

}  // namespace
}  // namespace mamba3
