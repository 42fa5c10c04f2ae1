// What the step with a ring holds in the shared memory of a block, and how it gets there.
//
// A block of two teams of threads walks (row, head) items, each item done by one team. What an
// item needs from memory is asked for several items ahead of its use, the state apart from the
// rest: its place is free again as soon as it lies in registers. What all heads of a row share is
// prepared once by the whole block: a segment. Of few items each has a block of one team.
#pragma once

#include <cstdint>

#include "device/bulk_copy.cuh"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"

namespace mamba3 {
namespace {

constexpr int kHeadDim = 64;
constexpr int kTeamThreads = 256;
constexpr int kTeamWarps = kTeamThreads / kWarpLanes;
constexpr int kMostStates = 6;  // on the way or at work in a block
constexpr int kMostSegmentHeads = 64;
constexpr int kFoldRows = kTeamWarps;  // rows K that are folded at a time, each by a warp

struct RingJob {
  TokenSizes sizes;
  Mamba3Params params;
  Mamba3Columns columns;
  const std::int32_t* slots;
  Mamba3States states;
  void* y;
  bool y_is_bf16;
  std::int64_t y_stride;
  int items;           // rows * heads
  int states_at_once;  // in a block, at most kMostStates
  int rows_at_most;    // that a block touches
  bool early_states;   // see Mamba3StepArgs
};

// One row of the batch, as the block keeps it.
struct RingRow {
  std::int32_t slot;
  std::uint32_t cursor;
};

// One item's memory apart from ssm, as it was before this token.
template <int N, int R>
struct RingTile {
  float* x;              // [entry, p]; without entries the state's k [r, n], then its v [p]
  RingToken* tokens;     // [entry]
  std::uint32_t* turns;  // [s]
  float* in_b_bias;      // [r, n]
  float* out_c_bias;     // [r, n]
  float* mimo_x;         // [r, p]
  float* mimo_z;         // [r, p]
  float* mimo_o;         // [r, p]

  __host__ __device__ RingTile(const TokenSizes& sizes, int ring_tokens, SharedParts& parts) {
    const int entries = ring_tokens * kHeadDim;
    const int canonical = R * N + kHeadDim;

    x = parts.take<float>(entries > canonical ? entries : canonical);
    tokens = parts.take<RingToken>(ring_tokens);
    turns = parts.take<std::uint32_t>(sizes.angles);
    in_b_bias = parts.take<float>(R * N);
    out_c_bias = parts.take<float>(R * N);
    const int ranked = sizes.mimo ? R * kHeadDim : 0;
    mimo_x = parts.take<float>(ranked);
    mimo_z = parts.take<float>(ranked);
    mimo_o = parts.take<float>(ranked);
  }
  __device__ const float* state_k() const { return x; }
  __device__ const float* state_v() const { return x + R * N; }
};

// What the heads of one row and group share. Rows B and C lie pair after pair: first and second
// part of pair i at 2 i and 2 i + 1, whichever way the layer pairs.
template <int N, int R>
struct RingSegment {
  float* ring_b;      // [entry, r, n]
  float* in_b;        // [r, n] of the new token
  float* out_c;       // [r, n]
  double* half_tanh;  // [entry, s], the new token's last, at [tokens]
  RingToken* tokens;  // [head of the segment] of the new token

  __host__ __device__ RingSegment(const TokenSizes& sizes, int ring_tokens, SharedParts& parts) {
    ring_b = parts.take<float>(ring_tokens * R * N);
    in_b = parts.take<float>(R * N);
    out_c = parts.take<float>(R * N);
    half_tanh = parts.take<double>((ring_tokens + 1) * sizes.angles);
    tokens = parts.take<RingToken>(kMostSegmentHeads);
  }
};

// One team's.
template <int N, int R>
struct RingScratch {
  int score_pitch;
  std::uint32_t* moves;  // [entry and new, s]
  float* cosine;         // [entry and new, s]
  float* sine;           // [entry and new, s]
  float* weights;        // [entry]
  float* decays;         // [2] of the state before it is folded into; of the state when it is read
  float* scores;         // [r, score_pitch]: of each rank of each entry, weighted
  float* q;              // [r, n]
  float* k_rows;         // [kFoldRows, n] while folding
  float* x_rows;         // [kFoldRows, p]
  float* partial;        // [.., r, p] in their place afterwards

  __host__ __device__ RingScratch(const TokenSizes& sizes, int ring_tokens, SharedParts& parts) {
    const int phases = (ring_tokens + 1) * sizes.angles;
    score_pitch = (ring_tokens + 1) * R + 4;
    moves = parts.take<std::uint32_t>(phases);
    cosine = parts.take<float>(phases);
    sine = parts.take<float>(phases);
    weights = parts.take<float>(ring_tokens);
    decays = parts.take<float>(2);
    scores = parts.take<float>(R * score_pitch);
    q = parts.take<float>(R * N);
    constexpr int kFold = kFoldRows * (N + kHeadDim);
    constexpr int kPartial = kTeamWarps * R * kHeadDim + kTeamThreads;
    k_rows = parts.take<float>(kFold > kPartial ? kFold : kPartial);
    x_rows = k_rows + kFoldRows * N;
    partial = k_rows;
  }
};

// The barriers come first, then the rows, the segment, the teams' scratch, tiles and states.
// T: teams of the block.
template <int N, int R, int T>
struct RingShared {
  static constexpr int kThreads = T * kTeamThreads;
  static constexpr int kWarps = T * kTeamWarps;
  static constexpr int kInputs = T == 1 ? 1 : 2 * T;  // tiles on the way or at work

  Barrier* state_full;    // [kMostStates]
  Barrier* tile_full;     // [kInputs]
  Barrier* segment_full;  // [1]
  int* share;             // [2] items [begin, end) of this block
  int* warp_costs;        // [warps]
  RingRow* rows;          // [rows_at_most]
  RingSegment<N, R> segment;
  float* scratch_base;
  int scratch_floats;
  float* tile_base;
  int tile_floats;
  float* states;  // [states_at_once, n, p]

  __host__ __device__ RingShared(const TokenSizes& sizes, int ring_tokens, int rows_at_most,
                                 SharedParts& parts)
      : state_full(parts.take<Barrier>(kMostStates)),
        tile_full(parts.take<Barrier>(kInputs)),
        segment_full(parts.take<Barrier>(1)),
        share(parts.take<int>(2)),
        warp_costs(parts.take<int>(kWarps)),
        rows(parts.take<RingRow>(rows_at_most)),
        segment(sizes, ring_tokens, parts) {
    SharedParts scratch_parts(nullptr), tile_parts(nullptr);
    const RingScratch<N, R> scratch(sizes, ring_tokens, scratch_parts);
    const RingTile<N, R> tile(sizes, ring_tokens, tile_parts);
    scratch_floats = scratch_parts.bytes() / static_cast<int>(sizeof(float));
    tile_floats = tile_parts.bytes() / static_cast<int>(sizeof(float));
    scratch_base = parts.take<float>(T * scratch_floats);
    tile_base = parts.take<float>(kInputs * tile_floats);
    states = parts.take<float>(0);
  }
  __device__ RingTile<N, R> tile(const RingJob& job, int index) const {
    SharedParts parts(tile_base + index * tile_floats);
    return RingTile<N, R>(job.sizes, static_cast<int>(job.states.ring.tokens), parts);
  }
  __device__ RingScratch<N, R> scratch(const RingJob& job, int team) const {
    SharedParts parts(scratch_base + team * scratch_floats);
    return RingScratch<N, R>(job.sizes, static_cast<int>(job.states.ring.tokens), parts);
  }
  __device__ float* state(int index) const { return states + index * N * kHeadDim; }
};

template <class T>
__device__ __forceinline__ T* ring_part(const Mamba3Ring& ring, T* part, std::int32_t slot) {
  return reinterpret_cast<T*>(reinterpret_cast<char*>(part) + slot * ring.slot_bytes);
}

// One head of one row, and what the token does to its ring.
struct RingItem {
  int head;
  std::int64_t row;
  std::int32_t slot;
  int count;  // entries before this token
  int entry;  // this token's
  bool fold;  // it folds what was there before

  __device__ RingItem(const RingJob& job, std::int64_t row_in, int head_in, const RingRow& at)
      : head(head_in), row(row_in), slot(at.slot) {
    const RingCursor before = unpack_cursor(at.cursor);
    const Mamba3Ring& ring = job.states.ring;
    const RingCursor after = advanced_cursor(before, static_cast<std::uint32_t>(ring.tokens),
                                             ring.stagger, static_cast<std::uint32_t>(at.slot));
    count = static_cast<int>(before.count);
    entry = static_cast<int>(after.count) - 1;
    fold = entry == 0;
  }
};

// Asks for an item's state, by one thread.
template <int N>
__device__ void request_state(const RingJob& job, const RingItem& item, float* state,
                              Barrier* full) {
  constexpr int kBytes = N * kHeadDim * static_cast<int>(sizeof(float));
  barrier_arrive_expecting(full, kBytes);
  bulk_copy(
      state,
      job.states.ssm + item.slot * job.states.ssm_stride + std::int64_t{item.head} * N * kHeadDim,
      kBytes, full);
}

// One of the copies that make up a tile.
struct RingCopy {
  void* to = nullptr;
  const void* from = nullptr;
  int bytes = 0;
};

template <int N, int R>
__device__ RingCopy tile_copy(const RingJob& job, const RingItem& item, const RingTile<N, R>& tile,
                              int number) {
  constexpr int kFloat = sizeof(float);
  const TokenSizes& sizes = job.sizes;
  const Mamba3States& states = job.states;
  const Mamba3Ring& ring = states.ring;
  const std::int64_t head = item.head, slot = item.slot;
  const int count = item.count;
  const int ranked = sizes.mimo ? R * kHeadDim * kFloat : 0;
  switch (number) {
    case 0:
      return {tile.turns, states.turns + slot * states.turns_stride + head * sizes.angles,
              sizes.angles * kFloat};
    case 1:
      return {tile.in_b_bias, job.params.in_b_bias + head * R * N, R * N * kFloat};
    case 2:
      return {tile.out_c_bias, job.params.out_c_bias + head * R * N, R * N * kFloat};
    case 3:
      return {tile.mimo_x, job.params.mimo_x + head * R * kHeadDim, ranked};
    case 4:
      return {tile.mimo_z, job.params.mimo_z + head * R * kHeadDim, ranked};
    case 5:
      return {tile.mimo_o, job.params.mimo_o + head * R * kHeadDim, ranked};
    case 6:
      if (count == 0) {
        return {tile.x + R * N, states.v + slot * states.v_stride + head * kHeadDim,
                kHeadDim * kFloat};
      }
      return {tile.x, ring_part(ring, ring.x, item.slot) + head * ring.tokens * kHeadDim,
              count * kHeadDim * kFloat};
    case 7:
      return {tile.tokens, ring_part(ring, ring.scalars, item.slot) + head * ring.tokens,
              count * static_cast<int>(sizeof(RingToken))};
    default: {  // rank number - 8 of the state's own K
      const int r = number - 8;
      return {tile.x + r * N, states.k + slot * states.k_stride + (r * sizes.heads + head) * N,
              count == 0 && r < R ? N * kFloat : 0};
    }
  }
}

// Asks for an item's tile, by one warp: a copy a lane.
template <int N, int R>
__device__ void request_tile(const RingJob& job, const RingItem& item, const RingTile<N, R>& tile,
                             Barrier* full, int lane) {
  constexpr int kCopies = 8 + R;
  const RingCopy copy = lane < kCopies ? tile_copy(job, item, tile, lane) : RingCopy{};
  int bytes = copy.bytes;
  for (int mask = kWarpLanes / 2; mask >= 1; mask /= 2) {
    bytes += __shfl_xor_sync(0xffffffffu, bytes, mask);
  }
  if (lane == 0) barrier_arrive_expecting(full, bytes);
  __syncwarp();
  if (copy.bytes > 0) bulk_copy(copy.to, copy.from, copy.bytes, full);
}

// Asks for the ring's rows of one group, by one warp.
template <int N, int R>
__device__ void request_segment(const RingJob& job, const RingRow& row, int group,
                                const RingSegment<N, R>& segment, Barrier* full) {
  constexpr int kRowBytes = R * N * static_cast<int>(sizeof(float));
  const Mamba3Ring& ring = job.states.ring;
  const RingCursor cursor = unpack_cursor(row.cursor);
  const int count = static_cast<int>(cursor.count);
  const int angles = job.sizes.angles;
  const int angle_bytes = angles * static_cast<int>(sizeof(double));
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  if (lane == 0) barrier_arrive_expecting(full, count * (kRowBytes + angle_bytes));
  __syncwarp();
  if (lane >= count) return;
  const std::int64_t place =
      ring_place(cursor, static_cast<std::uint32_t>(lane), static_cast<std::uint32_t>(ring.tokens));
  bulk_copy(segment.ring_b + lane * R * N,
            ring_part(ring, ring.in_b, row.slot) + (place * job.sizes.groups + group) * R * N,
            kRowBytes, full);
  if (angle_bytes > 0) {
    bulk_copy(segment.half_tanh + lane * angles,
              ring_part(ring, ring.half_tanh, row.slot) + place * angles, angle_bytes, full);
  }
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

}  // namespace
}  // namespace mamba3
