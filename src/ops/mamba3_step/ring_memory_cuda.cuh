// What the step with a ring holds in the shared memory of a block, and how it gets there.
//
// Teams of four warps walk (row, head) items, each item done by one team. A fifth warp serves them:
// it asks for the state of an item and what belongs to its head, which come by copies that run by
// themselves, as soon as their places are free. What all heads of a row share is prepared once by
// the whole block: a segment. Of few items each has a block with one team.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device/bulk_copy.cuh"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"

namespace mamba3 {
namespace {

constexpr int kHeadDim = 64;
constexpr int kTeamWarps = 4;
constexpr int kTeamThreads = kTeamWarps * kWarpLanes;
constexpr int kServedThreads = kTeamThreads + kWarpLanes;  // a team and the warp that serves it
constexpr int kMostTeams = 4;
constexpr int kMostWarps = (kMostTeams + 1) * kTeamWarps;
constexpr int kMostSegmentHeads = 64;
// A warp has a quarter of a state's pairs of rows, eight lanes side by side on eight of them. The
// four groups of lanes take as many entries, or rows K, at a time.
constexpr int kLanePairs = 8;
constexpr int kLaneGroups = kWarpLanes / kLanePairs;

struct RingJob {
  TokenSizes sizes;
  Mamba3Params params;
  Mamba3Columns columns;
  const std::int32_t* slots;
  Mamba3States states;
  void* y;
  bool y_is_bf16;
  std::int64_t y_stride;
  int items;         // rows * heads
  int teams;         // of a block
  bool one_item;     // a block has one, and warps beyond its team's
  int rows_at_most;  // that a block touches
  int team_bytes, scores_at, tokens_at, turns_at, segment_bytes;  // of RingShared
  bool early_states;                                              // see Mamba3StepArgs
};

// The same number, which the compiler does not know: what follows from it is computed where it is
// used. Computed ahead, for all of a walk, it would take more registers than there are.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// One row of the batch, as the block keeps it.
struct RingRow {
  std::int32_t slot;
  std::uint32_t cursor;
};

// What the token does to one row's ring, the same in all heads.
struct RingStep {
  std::int64_t row;
  std::int32_t slot;
  int count;  // entries before this token
  int entry;  // this token's
  bool fold;  // it folds what was there before

  __device__ RingStep(const RingJob& job, std::int64_t row_in, const RingRow& at)
      : row(row_in), slot(at.slot) {
    const RingCursor before = unpack_cursor(at.cursor);
    const Mamba3Ring& ring = job.states.ring;
    const RingCursor after = advanced_cursor(before, static_cast<std::uint32_t>(ring.tokens),
                                             ring.stagger, static_cast<std::uint32_t>(at.slot));
    count = static_cast<int>(before.count);
    entry = static_cast<int>(after.count) - 1;
    fold = entry == 0;
  }
  __device__ int scored() const { return fold ? 0 : count; }  // entries
};

// What a team works with. Its item's state, what K and Q are made from and what goes with X and the
// read-out come by copies, each with a barrier; two more say that the first and the last are free
// again. Behind it lies what grows with the ring.
template <int N, int R>
struct TeamMemory {
  static constexpr int kQuarter = N / kTeamWarps;
  static constexpr int kWarpPart = std::max(R * kHeadDim, kLaneGroups* kQuarter);

  alignas(16) float state[N * kHeadDim];
  // Keys, as they were before this token; tokens and turns too.
  float in_b_bias[R * N];
  float out_c_bias[R * N];
  // Values, x too.
  float mimo_x[R * kHeadDim];
  float mimo_z[R * kHeadDim];
  float mimo_o[R * kHeadDim];
  float columns[2][kHeadDim];  // x, z of the new token
  // What the warps tell each other. Rows of K and Q are a warp's quarter, in the order of its
  // pieces of the state.
  float q[kTeamWarps][R * kQuarter];
  float parts[kTeamWarps][kWarpPart];  // rows K while folding, [r, p] of the read-out afterwards
  float weights[kMostRingTokens];      // of each entry
  // Of the state before it is folded into; of the state when it is read. [turn of the team modulo
  // 2], because the next item's come before this one is finished.
  float2 decays[2];
  Barrier state_full, keys_full, values_full, state_free, values_free;

  // [entry, p]; without entries the state's k [r, n], then its v [p]
  __device__ float* x() { return reinterpret_cast<float*>(this + 1); }
  __device__ const float* state_k() { return x(); }
  __device__ const float* state_v() { return x() + R * N; }
  // [entry, r, r of the entry] weighted, behind what x takes
  __device__ float* scores(int count) {
    return x() + (count > 0 ? count * kHeadDim : R * N + kHeadDim);
  }
  // [warp, entry, r, r of the entry] each warp's part
  __device__ float* score_parts(const RingJob& job, int warp) {
    return x() + job.scores_at + warp * static_cast<int>(job.states.ring.tokens) * R * R;
  }
  __device__ RingToken* tokens(const RingJob& job) {  // [entry]
    return reinterpret_cast<RingToken*>(x() + job.tokens_at);
  }
  __device__ std::uint32_t* turns(const RingJob& job) {  // [s]
    return reinterpret_cast<std::uint32_t*>(x() + job.turns_at);
  }
  static void place(RingJob& job) {
    const auto tokens = static_cast<int>(job.states.ring.tokens);
    constexpr int kScores = R * R;
    job.scores_at = std::max({tokens * kHeadDim + kScores, R * N + kHeadDim + kScores,
                              (tokens - 1) * kHeadDim + tokens * kScores});
    job.scores_at = (job.scores_at + 3) / 4 * 4;
    job.tokens_at = (job.scores_at + kTeamWarps * tokens * kScores + 3) / 4 * 4;
    job.turns_at = job.tokens_at + tokens * static_cast<int>(sizeof(RingToken) / sizeof(float));
    job.team_bytes = static_cast<int>(sizeof(TeamMemory)) +
                     (job.turns_at + job.sizes.angles) * static_cast<int>(sizeof(float));
  }
};

// What the heads of one row and group share. Rows B and C lie pair after pair: first and second
// part of pair i at 2 i and 2 i + 1, whichever way the layer pairs. Entries are so far apart that
// two side by side lie in different banks. Behind it lies what grows with the ring: in_b,
// half_tanh.
template <int N, int R>
struct RingSegment {
  static constexpr int kEntryPitch = R * N + 2 * kLanePairs;

  Barrier full;
  int first_item, end_item;  // of the block
  int first_row;
  int first, end;  // of those, of the segment
  int head;        // of the first
  alignas(16) RingStep step;
  alignas(16) float out_c[R * N];
  RingToken tokens[kMostSegmentHeads];  // of the new token; fill[0] is the head's D

  // Row `entry` of the ring, or behind them all the new token's.
  __device__ float* in_b(int entry) {
    return reinterpret_cast<float*>(this + 1) + entry * kEntryPitch;
  }
  __device__ double* half_tanh(const RingJob& job, int entry) {
    double* begin = reinterpret_cast<double*>(in_b(static_cast<int>(job.states.ring.tokens) + 1));
    return begin + entry * angle_pitch(job.sizes);
  }
  __host__ __device__ static int angle_pitch(const TokenSizes& sizes) {
    return sizes.angles + kLanePairs;
  }
  // All of it.
  static int bytes(const TokenSizes& sizes, std::int64_t ring_tokens) {
    const int entry = kEntryPitch * static_cast<int>(sizeof(float)) +
                      angle_pitch(sizes) * static_cast<int>(sizeof(double));
    return static_cast<int>(sizeof(RingSegment)) + (static_cast<int>(ring_tokens) + 1) * entry;
  }
};

// A block's shared memory: its teams', the segment, the rows. What follows from the thread's number
// is found anew at each use, because registers are scarce.
template <int N, int R>
struct RingShared {
  // How the items are shared out, in the first team's place before it has work.
  struct Shares {
    int share[2];  // items [begin, end) of this block
    int warp_costs[kMostWarps];
  };
  const RingJob& job;
  char* base;

  // The team whose warp this is, or whom it serves. The teams' warps come first, then as many that
  // serve them.
  __device__ int team() const {
    const int warp = opaque(static_cast<int>(threadIdx.x)) / kWarpLanes;
    const int serving = warp - job.teams * kTeamWarps;
    return serving < 0 ? warp / kTeamWarps : serving;
  }
  __device__ TeamMemory<N, R>& own() const {  // that team's
    return *reinterpret_cast<TeamMemory<N, R>*>(base + team() * job.team_bytes);
  }
  __device__ RingSegment<N, R>& segment() const {
    return *reinterpret_cast<RingSegment<N, R>*>(base + job.teams * job.team_bytes);
  }
  __device__ RingRow* rows() const {  // [rows_at_most]
    return reinterpret_cast<RingRow*>(base + job.teams * job.team_bytes + job.segment_bytes);
  }
  __device__ Shares& shares() const { return *reinterpret_cast<Shares*>(base); }
  // Sets what a block needs, for job.teams teams.
  static int measure(RingJob& job) {
    TeamMemory<N, R>::place(job);
    job.segment_bytes = RingSegment<N, R>::bytes(job.sizes, job.states.ring.tokens);
    return job.teams * job.team_bytes + job.segment_bytes +
           job.rows_at_most * static_cast<int>(sizeof(RingRow));
  }
};

template <class T>
__device__ __forceinline__ T* ring_part(const Mamba3Ring& ring, T* part, std::int32_t slot) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(part) + slot * ring.slot_bytes);
}

// Asks for an item's state, by one thread.
template <int N, int R>
__device__ void request_state(const RingJob& job, const RingStep& step, int head_in,
                              TeamMemory<N, R>& to) {
  constexpr int kBytes = N * kHeadDim * static_cast<int>(sizeof(float));
  barrier_arrive_expecting(&to.state_full, kBytes);
  bulk_copy(
      to.state,
      job.states.ssm + step.slot * job.states.ssm_stride + std::int64_t{head_in} * N * kHeadDim,
      kBytes, &to.state_full);
}

// Asks for what an item's K and Q are made from, by one warp: a copy a lane.
template <int N, int R>
__device__ void request_keys(const RingJob& job, const RingStep& step, int head_in,
                             TeamMemory<N, R>& to, int lane) {
  constexpr int kBiasBytes = R * N * static_cast<int>(sizeof(float));
  const int turns_bytes = job.sizes.angles * static_cast<int>(sizeof(std::uint32_t));
  const int tokens_bytes = step.count * static_cast<int>(sizeof(RingToken));
  const Mamba3States& states = job.states;
  const std::int64_t head = head_in;
  if (lane == 0) {
    barrier_arrive_expecting(&to.keys_full, turns_bytes + tokens_bytes + 2 * kBiasBytes);
  }
  __syncwarp();
  if (lane == 0) {
    bulk_copy(to.in_b_bias, job.params.in_b_bias + head * R * N, kBiasBytes, &to.keys_full);
  } else if (lane == 1) {
    bulk_copy(to.out_c_bias, job.params.out_c_bias + head * R * N, kBiasBytes, &to.keys_full);
  } else if (lane == 2 && turns_bytes > 0) {
    bulk_copy(to.turns(job),
              states.turns + step.slot * states.turns_stride + head * job.sizes.angles, turns_bytes,
              &to.keys_full);
  } else if (lane == 3 && tokens_bytes > 0) {
    const Mamba3Ring& ring = states.ring;
    bulk_copy(to.tokens(job), ring_part(ring, ring.scalars, step.slot) + head * ring.tokens,
              tokens_bytes, &to.keys_full);
  }
}

// And for X and what goes with the read-out.
template <int N, int R>
__device__ void request_values(const RingJob& job, const RingStep& step, int head_in,
                               TeamMemory<N, R>& to, int lane) {
  constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(float));
  constexpr int kKeyBytes = N * static_cast<int>(sizeof(float));
  const Mamba3States& states = job.states;
  const Mamba3Params& params = job.params;
  const Mamba3Ring& ring = states.ring;
  const std::int64_t head = head_in, slot = step.slot, ranked = head * R * kHeadDim;
  const int x_bytes = step.count > 0 ? step.count * kRowBytes : kRowBytes + R * kKeyBytes;
  const int ranked_bytes = job.sizes.mimo ? R * kRowBytes : 0;
  Barrier* full = &to.values_full;
  if (lane == 0) barrier_arrive_expecting(full, x_bytes + 3 * ranked_bytes);
  __syncwarp();
  if (lane == 0 && step.count > 0) {
    bulk_copy(to.x(), ring_part(ring, ring.x, step.slot) + head * ring.tokens * kHeadDim, x_bytes,
              full);
  }
  if (step.count == 0) {
    if (lane == 0) {
      bulk_copy(to.x() + R * N, states.v + slot * states.v_stride + head * kHeadDim, kRowBytes,
                full);
    }
    if (lane < R) {
      bulk_copy(to.x() + lane * N,
                states.k + slot * states.k_stride + (lane * job.sizes.heads + head) * N, kKeyBytes,
                full);
    }
  }
  if (ranked_bytes == 0) return;
  if (lane == 1) bulk_copy(to.mimo_x, params.mimo_x + ranked, ranked_bytes, full);
  if (lane == 2) bulk_copy(to.mimo_z, params.mimo_z + ranked, ranked_bytes, full);
  if (lane == 3) bulk_copy(to.mimo_o, params.mimo_o + ranked, ranked_bytes, full);
}

// Asks for the ring's rows of one group, by one warp.
template <int N, int R>
__device__ void request_segment(const RingJob& job, const RingRow& row, int group,
                                RingSegment<N, R>& segment, int lane) {
  constexpr int kRowBytes = R * N * static_cast<int>(sizeof(float));
  const Mamba3Ring& ring = job.states.ring;
  const RingCursor cursor = unpack_cursor(row.cursor);
  const int count = static_cast<int>(cursor.count);
  const int angles = job.sizes.angles;
  const int angle_bytes = angles * static_cast<int>(sizeof(double));
  if (lane == 0) barrier_arrive_expecting(&segment.full, count * (kRowBytes + angle_bytes));
  __syncwarp();
  if (lane >= count) return;
  const std::int64_t place =
      ring_place(cursor, static_cast<std::uint32_t>(lane), static_cast<std::uint32_t>(ring.tokens));
  bulk_copy(segment.in_b(lane),
            ring_part(ring, ring.in_b, row.slot) + (place * job.sizes.groups + group) * R * N,
            kRowBytes, &segment.full);
  if (angle_bytes > 0) {
    bulk_copy(segment.half_tanh(job, lane),
              ring_part(ring, ring.half_tanh, row.slot) + place * angles, angle_bytes,
              &segment.full);
  }
}

}  // namespace
}  // namespace mamba3
