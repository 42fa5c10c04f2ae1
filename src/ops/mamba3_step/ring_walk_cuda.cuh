// What a block does with its share of (row, head) items: it prepares what the heads of a row share,
// and its teams do the items in turn, each served by a warp of its own.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/mamba3_step/ring_fold_cuda.cuh"
#include "ops/mamba3_step/ring_output_cuda.cuh"

namespace mamba3 {
namespace {

// What the teams of a block ask for. An item's number is its place in the block's share.
template <int N, int R, int T>
struct Walk {
  const RingJob& job;
  RingShared<N, R> shared;

  __device__ RingStep step_of(int row) const {
    return RingStep(job, row, shared.rows()[row - shared.segment().first_row]);
  }
  // body(step, head) for item `number`, if there is one.
  template <class Body>
  __device__ void with_item(int number, const Body& body) const {
    const int item = shared.segment().first_item + number;
    if (item >= shared.segment().end_item) return;
    const int row = item / job.sizes.heads;
    body(step_of(row), item - row * job.sizes.heads);
  }
  // For the team's own memory, by one warp. wait(): until its place is free, when all is known.
  template <class Wait>
  __device__ void ask_for_state(int number, int lane, const Wait& wait) const {
    with_item(number, [&](const RingStep& step, int head) {
      wait();
      if (lane == 0) request_state(job, step, head, shared.own());
    });
  }
  __device__ void ask_for_keys(int number, int lane) const {
    with_item(number, [&](const RingStep& step, int head) {
      request_keys(job, step, head, shared.own(), lane);
    });
  }
  template <class Wait>
  __device__ void ask_for_values(int number, int lane, const Wait& wait) const {
    with_item(number, [&](const RingStep& step, int head) {
      wait();
      request_values(job, step, head, shared.own(), lane);
    });
  }
};

// The team's item number `turn`, found anew where it is needed.
struct ItemPlace {
  int number;  // of the block
  int index;   // of the segment
  int head;

  template <int N, int R, int T>
  __device__ ItemPlace(const Walk<N, R, T>& walk, int turn)
      : number(walk.shared.team() + turn * walk.job.teams),
        index(number - walk.shared.segment().first),
        head(walk.shared.segment().head + index) {}
};

// Items of one row and group from `begin` on.
__device__ int segment_end(const RingJob& job, int begin, int end) {
  const int heads = job.sizes.heads;
  const int group_heads = heads / job.sizes.groups;
  const int group_begin = begin / group_heads * group_heads;  // heads is a multiple of group_heads
  return min(min(end, group_begin + group_heads), begin + kMostSegmentHeads);
}

// Parameters that are read with the new token come near while the kernel ahead still runs.
template <int N>
__device__ void fetch_parameters(const Mamba3Params& params, int head) {
  constexpr int kLine = 32;  // floats
  const int thread = static_cast<int>(threadIdx.x);
  const float* from = nullptr;
  if (thread < N / kLine) from = params.in_b_norm + thread * kLine;
  if (thread / kWarpLanes == 1 && thread % kWarpLanes < N / kLine) {
    from = params.out_c_norm + thread % kWarpLanes * kLine;
  }
  if (thread == 2 * kWarpLanes) from = params.dt_bias + head;
  if (thread == 3 * kWarpLanes) from = params.skip + head;
  if (from != nullptr) asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// What the new token brings for all heads of the segment, normalised and in double where the state
// needs it. Each part by a warp or threads of its own, whose loads all come first. The row that is
// new is number `count`.
template <int N, int R>
__device__ void prepare_segment(const RingJob& job, RingSegment<N, R>& segment,
                                const RingStep& step, int group, int head, int heads) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Columns& in = job.columns;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int warp = thread / kWarpLanes, lane = thread % kWarpLanes;
  const std::int64_t from = step.row * in.row_stride;
  const int count = step.count;
  const bool mimo = R > 1 || sizes.mimo;
  // From the last thread on a head's numbers each, then an angle each; the first warps take rows.
  constexpr int kMostAngles = N / 2;
  const int most_heads = job.one_item ? kWarpLanes : kMostSegmentHeads;
  const int row_warps = (threads - most_heads - kMostAngles) / kWarpLanes;
  const int own = threads - 1 - thread;
  const int i = own - most_heads;
  if (thread == 0) segment.step = step;
  const bool has_angle = i >= 0 && i < sizes.angles, has_own = own < heads;
  const float angle = has_angle ? in.angle_raw[from + i] : 0.0f;
  float dt = 0, dt_bias = 0, decay = 0, trap = 0, skip = 0;
  if (has_own) {
    const std::int64_t at = from + head + own;
    dt = in.dt_raw[at], dt_bias = job.params.dt_bias[head + own];
    decay = in.decay_raw[at], trap = in.trap_raw[at], skip = job.params.skip[head + own];
  }
  for (int index = warp; warp < row_warps && index < 2 * R; index += row_warps) {
    const int r = index / 2;
    const bool is_b = index % 2 == 0;
    const std::int64_t at = from + (std::int64_t{r} * sizes.groups + group) * N;
    const float* raw = (is_b ? in.in_b : in.out_c) + at;
    const float* weight = is_b ? job.params.in_b_norm : job.params.out_c_norm;
    float* out = (is_b ? segment.in_b(count) : segment.out_c) + r * N;
    warp_norm_row(raw, weight, N, lane, [&](int j, float value) {
      const int place = !mimo ? j : j < N / 2 ? 2 * j : 2 * (j - N / 2) + 1;
      out[place] = value;
    });
  }
  if (has_angle) segment.half_tanh(job, count)[i] = half_tanh(angle);
  if (has_own) {
    const TokenNumbers numbers = token_numbers(sizes, dt, dt_bias, decay, trap);
    RingToken& out = segment.tokens[own];
    out.dt = numbers.dt;
    out.log_decay = numbers.log_decay;
    out.now = static_cast<float>(numbers.now);
    out.carry = static_cast<float>(numbers.carry);
    out.fill[0] = skip;
    out.fill[1] = 0;
  }
}

// The rows that all heads share enter the ring once: with the first head of the group, or of all.
template <int N, int R>
__device__ void append_segment(const RingJob& job, RingSegment<N, R>& segment, const RingRow& at,
                               int group, int head) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Ring& ring = job.states.ring;
  if (head % (sizes.heads / sizes.groups) != 0) return;
  const auto tokens = static_cast<std::uint32_t>(ring.tokens);
  const RingCursor before = unpack_cursor(at.cursor);
  const RingCursor after =
      advanced_cursor(before, tokens, ring.stagger, static_cast<std::uint32_t>(at.slot));
  const std::int64_t place = ring_place(after, after.count - 1, tokens);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  float* in_b = ring_part(ring, ring.in_b, at.slot) + (place * sizes.groups + group) * R * N;
  const auto count = static_cast<int>(before.count);
  const float* rows = segment.in_b(count);
  for (int i = thread; i < R * N; i += threads) in_b[i] = rows[i];
  if (head != 0) return;
  double* half_tanhs = ring_part(ring, ring.half_tanh, at.slot) + place * sizes.angles;
  const double* angles = segment.half_tanh(job, count);
  for (int i = thread; i < sizes.angles; i += threads) half_tanhs[i] = angles[i];
}

// Asks for what the heads of a row share, by the block's first warp.
template <int N, int R, int T>
__device__ void ask_for_segment(const Walk<N, R, T>& walk, int row, int head) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread >= kWarpLanes) return;
  const int group = head / (walk.job.sizes.heads / walk.job.sizes.groups);
  RingSegment<N, R>& segment = walk.shared.segment();
  request_segment(walk.job, walk.shared.rows()[row - segment.first_row], group, segment, thread);
}

// Makes the block ready for the items of a segment that begins with `from`; returns its end.
template <int N, int R, int T>
__device__ int prepare_segment(const Walk<N, R, T>& walk, int from, int end, unsigned parity) {
  const RingJob& job = walk.job;
  RingSegment<N, R>& segment = walk.shared.segment();
  const int to = segment_end(job, from, end);
  const int row = from / job.sizes.heads, head = from - row * job.sizes.heads;
  const int group = head / (job.sizes.heads / job.sizes.groups);
  const int first = from - segment.first_item;
  if (threadIdx.x == 0) {
    segment.first = first, segment.end = first + to - from;
    segment.head = head;
  }
  if (first > 0) ask_for_segment(walk, row, head);
  prepare_segment(job, segment, walk.step_of(row), group, head, to - from);
  barrier_wait(&segment.full, parity);
  __syncthreads();
  append_segment(job, segment, walk.shared.rows()[row - segment.first_row], group, head);
  return to;
}

// The phases behind the ring's tokens become the state's.
template <int T>
__device__ __forceinline__ void store_base(const RingJob& job, const Team& team,
                                           const RingStep& step, int head,
                                           const Phases<T>& phases) {
  if (team.group > 0) return;
  std::uint32_t* base = job.states.turns + step.slot * job.states.turns_stride +
                        std::int64_t{head} * job.sizes.angles;
#pragma unroll
  for (int v = 0; v < T; ++v) {
    const int i = v * kPairStep + first_pair(team);
    if (i < job.sizes.angles) base[i] = phases.turns[v];
  }
}

// Rotations, Q, scores: before the state is there.
template <int T, int N, int R>
__device__ void score_item(const RingJob& job, const Team& team, const RingStep& step, int head,
                           TeamMemory<N, R>& memory, RingSegment<N, R>& segment,
                           const RingToken& fresh) {
  const TokenSizes& sizes = job.sizes;
  const int count = step.count;
  Moves<T> moves(job, team, memory, segment, 0, count);
  Phases<T> phases(sizes, team, memory.turns(job));
  phases.move_through(sizes, team, moves);
  if (step.fold) store_base(job, team, step, head, phases);
  phases.move(sizes, team, segment.half_tanh(job, count), fresh.dt);
  const Rotation<T> rotation(sizes, team, phases.turns, phases.finite);
  Pairs<N> q[R];
  score_new<N, R>(job, team, memory, segment, rotation, count, step.fold ? 0 : count, q);
  if (!step.fold) score_ring<T, N, R>(job, team, memory, segment, count, moves, q);
}

template <int N>
__device__ __forceinline__ float* ssm_of(const RingJob& job, const RingStep& step, int head) {
  return job.states.ssm + step.slot * job.states.ssm_stride + std::int64_t{head} * N * kHeadDim;
}

// Folds the whole ring into the state.
template <int T, int N, int R>
__device__ __forceinline__ void fold_item(const RingJob& job, const Team& team,
                                          const RingStep& step, int head, TeamMemory<N, R>& memory,
                                          RingSegment<N, R>& segment, int turn,
                                          StatePart<N>& part) {
  const bool mimo = R > 1 || job.sizes.mimo;
  fold<T>(job, team, memory, segment, turn, step.count, part);
  float* ssm = ssm_of<N>(job, step, head);
#pragma unroll
  for (int i = 0; i < part.kPieces; ++i) part.store(ssm + part.offset(mimo, team, i), i);
}

// The state's part of the read-out; where the ring is folded, the state as well. A fold takes the
// state at once, so that the next can come meanwhile; a pass that only reads it is over too soon.
template <int N, int R, int T>
__device__ __forceinline__ void pass_over_state(const Walk<N, R, T>& walk, int turn) {
  constexpr int kQuarter = TeamMemory<N, R>::kQuarter;
  const RingJob& job = walk.job;
  const Team team;
  TeamMemory<N, R>& memory = walk.shared.own();
  RingSegment<N, R>& segment = walk.shared.segment();
  StatePart<N> part(team);
  const bool mimo = R > 1 || job.sizes.mimo;
  const float* q = memory.q[team.warp];
  float sums[R][4] = {};
  if (segment.step.fold) {
    part.load(memory.state, mimo, team);
    arrive_warp(&memory.state_free, team.lane);
    fold_item<T>(job, team, segment.step, ItemPlace(walk, turn).head, memory, segment, turn, part);
#pragma unroll
    for (int i = 0; i < part.kPieces; ++i) {
      for (int r = 0; r < R; ++r) part.read(q + r * kQuarter, i, sums[r]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < part.kPieces; ++i) {
      part.load(memory.state + part.offset(mimo, team, i), i);
      for (int r = 0; r < R; ++r) part.read(q + r * kQuarter, i, sums[r]);
    }
    arrive_warp(&memory.state_free, team.lane);
  }
  store_read_out<N, R>(team, memory, part, sums);
}

// Asks for the new token's x and z, a number a thread.
template <int N, int R>
__device__ __forceinline__ void ask_for_columns(const RingJob& job, const Team& team,
                                                const RingStep& step, int head,
                                                TeamMemory<N, R>& memory) {
  const int column = team.thread % kHeadDim;
  const std::int64_t from = step.row * job.columns.row_stride + head * kHeadDim + column;
  const bool is_x = team.thread < kHeadDim;
  __pipeline_memcpy_async(&memory.columns[is_x ? 0 : 1][column],
                          (is_x ? job.columns.x : job.columns.z) + from, sizeof(float));
  __pipeline_commit();
}

__device__ __forceinline__ unsigned parity_of(int turn) {
  return static_cast<unsigned>(turn) & 1u;
}

template <int N, int R, int T>
__device__ void score_item(const Walk<N, R, T>& walk, int turn) {
  const Team team;
  const ItemPlace item(walk, turn);
  TeamMemory<N, R>& memory = walk.shared.own();
  RingSegment<N, R>& segment = walk.shared.segment();
  barrier_wait(&memory.keys_full, parity_of(turn));
  score_item<T>(walk.job, team, segment.step, item.head, memory, segment,
                segment.tokens[item.index]);
}

template <int N, int R, int T>
__device__ void pass_over_item(const Walk<N, R, T>& walk, int turn) {
  const Team team;
  const ItemPlace item(walk, turn);
  TeamMemory<N, R>& memory = walk.shared.own();
  RingSegment<N, R>& segment = walk.shared.segment();
  const RingStep& step = segment.step;
  ask_for_columns(walk.job, team, step, item.head, memory);
  weigh_scores(walk.job, team, memory, step, segment.tokens[item.index].now);
  if (step.fold) barrier_wait(&memory.values_full, parity_of(turn));
  barrier_wait(&memory.state_full, parity_of(turn));
  pass_over_state(walk, turn);
  __pipeline_wait_prior(0);
}

template <int N, int R, int T>
__device__ void finish_item(const Walk<N, R, T>& walk, int turn) {
  const Team team;
  const ItemPlace item(walk, turn);
  TeamMemory<N, R>& memory = walk.shared.own();
  const RingSegment<N, R>& segment = walk.shared.segment();
  const RingStep& step = segment.step;
  const RingToken& fresh = segment.tokens[item.index];
  const OutputPlace<R> at(team);
  barrier_wait(&memory.values_full, parity_of(turn));
  append_item(walk.job, step, item.head, team, fresh, memory.columns[0]);
  if (at.exists) {
    finish(walk.job, step, item.head, memory, at, memory.decays[turn % 2].y, fresh.fill[0]);
  }
  arrive_warp(&memory.values_free, team.lane);
}

// What the warp that serves a team does beside each of the three: the item's weights, and requests
// for the team's next item.
template <int N, int R, int T>
__device__ void weigh_item(const Walk<N, R, T>& walk, int turn) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const ItemPlace item(walk, turn);
  TeamMemory<N, R>& memory = walk.shared.own();
  const RingSegment<N, R>& segment = walk.shared.segment();
  const RingStep& step = segment.step;
  barrier_wait(&memory.keys_full, parity_of(turn));
  weigh_entries(walk.job, memory, turn, step.count, step.fold, &segment.tokens[item.index], lane);
}

template <int N, int R, int T>
__device__ void ask_during_pass(const Walk<N, R, T>& walk, int turn) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int next = ItemPlace(walk, turn).number + walk.job.teams;
  if (!walk.shared.segment().step.fold) return walk.ask_for_keys(next, lane);
  walk.ask_for_state(next, lane,
                     [&] { barrier_wait(&walk.shared.own().state_free, parity_of(turn)); });
}

template <int N, int R, int T>
__device__ void ask_after_pass(const Walk<N, R, T>& walk, int turn) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int next = ItemPlace(walk, turn).number + walk.job.teams;
  if (walk.shared.segment().step.fold) {
    walk.ask_for_keys(next, lane);
  } else {
    walk.ask_for_state(next, lane, [] {});
  }
  walk.ask_for_values(next, lane,
                      [&] { barrier_wait(&walk.shared.own().values_free, parity_of(turn)); });
}

// An item, by a team and the warp that serves it. Both wait for each other at the same places of
// the program: PTX does not ask for that, but the tool synccheck does.
template <int N, int R, int T>
__device__ void take_item(const Walk<N, R, T>& walk, int turn, bool serves) {
  serves ? weigh_item(walk, turn) : score_item(walk, turn);
  sync_team(walk.shared.team());
  serves ? ask_during_pass(walk, turn) : pass_over_item(walk, turn);
  sync_team(walk.shared.team());
  serves ? ask_after_pass(walk, turn) : finish_item(walk, turn);
}

// Folds all of an item's ring into the canonical tuple.
template <int T, int N, int R>
__device__ void settle_item(const RingJob& job, const Team& team, const RingStep& step, int head,
                            TeamMemory<N, R>& memory, RingSegment<N, R>& segment) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3States& states = job.states;
  const int last = step.count - 1;
  const bool mimo = R > 1 || sizes.mimo;
  StatePart<N> part(team);
  part.load(memory.state, mimo, team);
  fold_item<T>(job, team, step, head, memory, segment, 0, part);

  Phases<T> phases(sizes, team, memory.turns(job));
  phases.move_through(sizes, team, Moves<T>(job, team, memory, segment, 0, last));
  phases.move(sizes, team, segment.half_tanh(job, last), memory.tokens(job)[last].dt);
  store_base(job, team, step, head, phases);
  const Rotation<T> rotation(sizes, team, phases.turns, phases.finite);
  if (const int r = team.group; r < R) {
    Pairs<N> k, bias;
    load_pairs<N>(segment.in_b(last) + r * N, team, k);
    load_state_order<N>(memory.in_b_bias + r * N, mimo, team, bias);
    bias_and_turn<N>(rotation, bias, k);
    store_state_order<N>(
        k, mimo, team,
        states.k + step.slot * states.k_stride + std::int64_t{r * sizes.heads + head} * N);
  }
  float* v = states.v + step.slot * states.v_stride + std::int64_t{head} * kHeadDim;
  if (team.thread < kHeadDim) v[team.thread] = memory.x()[last * kHeadDim + team.thread];
}

// Of one team; the first three complete when what was asked for is there.
template <int N, int R>
__device__ void init_barriers(TeamMemory<N, R>& memory) {
  barrier_init(&memory.state_full, 1);
  barrier_init(&memory.keys_full, 1);
  barrier_init(&memory.values_full, 1);
  barrier_init(&memory.state_free, kWarpArrivals * kTeamWarps);
  barrier_init(&memory.values_free, kWarpArrivals * kTeamWarps);
}

// The rows of the block's items [begin, end), the barriers, and the first requests.
template <int N, int R, int T>
__device__ void begin_walk(const Walk<N, R, T>& walk, int begin, int end, bool serves) {
  const RingJob& job = walk.job;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpLanes;
  const int first_row = begin / job.sizes.heads;
  const int rows = (end - 1) / job.sizes.heads - first_row + 1;
  for (int i = thread; i < rows; i += static_cast<int>(blockDim.x)) {
    const std::int32_t slot = job.slots[first_row + i];
    walk.shared.rows()[i] = {slot, job.states.ring.cursors[slot]};
  }
  RingSegment<N, R>& segment = walk.shared.segment();
  if (serves && lane == 0) init_barriers(walk.shared.own());
  if (thread == 0) {
    barrier_init(&segment.full, 1);
    segment.first_item = begin, segment.end_item = end;
    segment.first_row = first_row;
  }
  barrier_init_done();
  __syncthreads();
  if (serves) {
    const int team = walk.shared.team();
    const auto is_free = [] {};
    walk.ask_for_state(team, lane, is_free);
    walk.ask_for_keys(team, lane);
    walk.ask_for_values(team, lane, is_free);
  }
  ask_for_segment(walk, first_row, begin - first_row * job.sizes.heads);
}

}  // namespace
}  // namespace mamba3
