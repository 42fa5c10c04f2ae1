// What a block does with its share of (row, head) items: it prepares what the heads of a row share,
// and its teams do the items one after the other.
#pragma once

#include <cstdint>

#include "ops/mamba3_step/ring_item_cuda.cuh"

namespace mamba3 {
namespace {

// One block's items, and where the memory of each comes to. An item's number is its place in the
// block's share.
template <int N, int R, int T>
struct Walk {
  static constexpr int kInputs = RingShared<N, R, T>::kInputs;
  const RingJob& job;
  const RingShared<N, R, T>& shared;
  int begin;  // items of this block
  int end;
  int first_row;

  __device__ RingItem item(int index) const {
    const int row = index / job.sizes.heads;
    return RingItem(job, row, index - row * job.sizes.heads, shared.rows[row - first_row]);
  }
  __device__ void ask_for_state(int number) const {  // by one thread
    if (begin + number >= end) return;
    const int place = number % job.states_at_once;
    request_state<N>(job, item(begin + number), shared.state(place), shared.state_full + place);
  }
  __device__ void ask_for_tile(int number, int lane) const {  // by one warp
    if (begin + number >= end) return;
    const int place = number % kInputs;
    request_tile(job, item(begin + number), shared.tile(job, place), shared.tile_full + place,
                 lane);
  }
  __device__ const float* receive_state(int number) const {
    const int place = number % job.states_at_once;
    barrier_wait(shared.state_full + place,
                 static_cast<unsigned>(number / job.states_at_once) & 1u);
    return shared.state(place);
  }
  __device__ RingTile<N, R> receive_tile(int number) const {
    const int place = number % kInputs;
    barrier_wait(shared.tile_full + place, static_cast<unsigned>(number / kInputs) & 1u);
    return shared.tile(job, place);
  }
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
// needs it. Each part by a warp or threads of its own, whose loads all come first.
template <int N, int R, int T>
__device__ void prepare_segment(const RingJob& job, const RingSegment<N, R>& segment,
                                std::int64_t row, int group, int head, int heads) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Columns& in = job.columns;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpLanes, lane = thread % kWarpLanes;
  const std::int64_t from = row * in.row_stride;
  const bool mimo = R > 1 || sizes.mimo;
  // From the last thread on a head's numbers each, then an angle each; the first warps take rows.
  constexpr int kNumbers = T == 1 ? kWarpLanes : kMostSegmentHeads;
  constexpr int kRowWarps = T == 1 ? kTeamWarps - 3 : kTeamWarps;
  const int own = T * kTeamThreads - 1 - thread;
  const int i = own - kNumbers;
  const bool has_angle = i >= 0 && i < sizes.angles, has_own = own < heads;
  const float angle = has_angle ? in.angle_raw[from + i] : 0.0f;
  float dt = 0, dt_bias = 0, decay = 0, trap = 0;
  if (has_own) {
    const std::int64_t at = from + head + own;
    dt = in.dt_raw[at], dt_bias = job.params.dt_bias[head + own];
    decay = in.decay_raw[at], trap = in.trap_raw[at];
  }
  for (int index = warp; warp < kRowWarps && index < 2 * R; index += kRowWarps) {
    const int r = index / 2;
    const bool is_b = index % 2 == 0;
    const std::int64_t at = from + (std::int64_t{r} * sizes.groups + group) * N;
    const float* raw = (is_b ? in.in_b : in.out_c) + at;
    const float* weight = is_b ? job.params.in_b_norm : job.params.out_c_norm;
    float* out = (is_b ? segment.in_b : segment.out_c) + r * N;
    warp_norm_row(raw, weight, N, lane, [&](int j, float value) {
      const int place = !mimo ? j : j < N / 2 ? 2 * j : 2 * (j - N / 2) + 1;
      out[place] = value;
    });
  }
  double* half_tanhs = segment.half_tanh + job.states.ring.tokens * sizes.angles;
  if (has_angle) half_tanhs[i] = half_tanh(angle);
  if (has_own) {
    const TokenNumbers numbers = token_numbers(sizes, dt, dt_bias, decay, trap);
    RingToken& out = segment.tokens[own];
    out.dt = numbers.dt;
    out.log_decay = numbers.log_decay;
    out.now = static_cast<float>(numbers.now);
    out.carry = static_cast<float>(numbers.carry);
    out.fill[0] = out.fill[1] = 0;
  }
}

// The rows that all heads share enter the ring once: with the first head of the group, or of all.
template <int N, int R, int T>
__device__ void append_segment(const RingJob& job, const RingSegment<N, R>& segment,
                               const RingRow& at, int group, int head) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Ring& ring = job.states.ring;
  if (head % (sizes.heads / sizes.groups) != 0) return;
  const auto tokens = static_cast<std::uint32_t>(ring.tokens);
  const RingCursor after = advanced_cursor(unpack_cursor(at.cursor), tokens, ring.stagger,
                                           static_cast<std::uint32_t>(at.slot));
  const std::int64_t place = ring_place(after, after.count - 1, tokens);
  const int thread = static_cast<int>(threadIdx.x);
  float* in_b = ring_part(ring, ring.in_b, at.slot) + (place * sizes.groups + group) * R * N;
  for (int i = thread; i < R * N; i += T * kTeamThreads) in_b[i] = segment.in_b[i];
  if (head != 0) return;
  double* half_tanhs = ring_part(ring, ring.half_tanh, at.slot) + place * sizes.angles;
  for (int i = thread; i < sizes.angles; i += T * kTeamThreads) {
    half_tanhs[i] = segment.half_tanh[ring.tokens * sizes.angles + i];
  }
}

// A thread's rank and column of the head, and its share of the ring's tokens.
template <int R>
struct OutputPlace {
  static constexpr int kSplits = kTeamThreads / (kHeadDim * R);
  int rank, column, split;
  __device__ explicit OutputPlace(int thread)
      : rank(thread % R), column(thread / R % kHeadDim), split(thread / (R * kHeadDim)) {}
};

// What the ring's tokens [first, count], of which the last is new, add to the read-out.
template <int N, int R>
__device__ float read_entries(const TokenSizes& sizes, const RingTile<N, R>& tile,
                              const RingScratch<N, R>& s, const OutputPlace<R>& at, int first,
                              int count, float x) {
  float sums[R] = {};
  const float* scores = s.scores + at.rank * s.score_pitch;
  for (int j = first + at.split; j <= count; j += OutputPlace<R>::kSplits) {
    const float own = j < count ? tile.x[j * kHeadDim + at.column] : x;
#pragma unroll
    for (int of = 0; of < R; ++of) sums[of] = fmaf(scores[j * R + of], own, sums[of]);
  }
  if (!sizes.mimo) return sums[0];
  float sum = 0;
#pragma unroll
  for (int of = 0; of < R; ++of) {
    sum = fmaf(sums[of], tile.mimo_x[of * kHeadDim + at.column], sum);
  }
  return sum;
}

// What a thread needs of the columns and of D.
struct ItemColumns {
  float x, z, skip;

  template <int R>
  __device__ ItemColumns(const RingJob& job, const RingItem& item, const OutputPlace<R>& at) {
    const std::int64_t from = item.row * job.columns.row_stride + item.head * kHeadDim + at.column;
    x = job.columns.x[from], z = job.columns.z[from], skip = job.params.skip[item.head];
  }
};

// Sums over warps and splits, skip, gate, sum over ranks.
template <int N, int R>
__device__ void finish(const RingJob& job, const RingItem& item, const RingTile<N, R>& tile,
                       const RingScratch<N, R>& s, const OutputPlace<R>& at, float entries,
                       const ItemColumns& own) {
  if (at.split > 0) return;
  const HeadGate gate{
      job.sizes.mimo ? tile.mimo_x : nullptr, tile.mimo_z, tile.mimo_o, own.skip, R, kHeadDim};
  const float* part = s.partial + at.rank * kHeadDim + at.column;
  float sum = part[0];
#pragma unroll
  for (int i = 1; i < kTeamWarps; ++i) sum += part[i * R * kHeadDim];
  sum = fmaf(s.decays[1], sum, entries);
#pragma unroll
  for (int i = 1; i < OutputPlace<R>::kSplits; ++i) {
    sum += part[(kTeamWarps + i - 1) * R * kHeadDim];
  }
  const float o = add_skip(gate, at.rank, at.column, own.x, sum);
  float y = gated(gate, at.rank, at.column, own.z, o);
#pragma unroll
  for (int mask = 1; mask < R; mask *= 2) y += __shfl_xor_sync(0xffffffffu, y, mask);
  if (at.rank == 0) {
    const std::int64_t index = item.row * job.y_stride + item.head * kHeadDim + at.column;
    if (job.y_is_bf16) {
      static_cast<__nv_bfloat16*>(job.y)[index] = __float2bfloat16_rn(y);
    } else {
      static_cast<float*>(job.y)[index] = y;
    }
  }
}

// x and the numbers of the new token enter the ring.
template <int R>
__device__ void append_item(const RingJob& job, const RingItem& item, const OutputPlace<R>& at,
                            const RingToken& fresh, float x) {
  const Mamba3Ring& ring = job.states.ring;
  const std::int64_t to = item.head * ring.tokens + item.entry;
  if (at.split == 0 && at.rank == 0) {
    ring_part(ring, ring.x, item.slot)[to * kHeadDim + at.column] = x;
  }
  if (at.split == OutputPlace<R>::kSplits - 1 && at.column == kHeadDim - 1 && at.rank == R - 1) {
    ring_part(ring, ring.scalars, item.slot)[to] = fresh;
  }
}

template <int N, int R, int T>
__device__ void do_item(const Walk<N, R, T>& walk, const Team& team, const RingItem& item,
                        const ItemColumns& own, int number, const RingScratch<N, R>& s,
                        const RingToken& fresh) {
  const RingJob& job = walk.job;
  const TokenSizes& sizes = job.sizes;
  const RingSegment<N, R>& segment = walk.shared.segment;
  const int count = item.count;
  const bool last_warp = team.warp == kTeamWarps - 1;
  const OutputPlace<R> at(team.thread);
  const RingTile<N, R> tile = walk.receive_tile(number);
  if (last_warp) {
    weigh_entries(tile, s, count, item.fold, &fresh, team.lane);
  } else {
    move_phases(sizes, static_cast<int>(job.states.ring.tokens), team, tile, segment, s, count,
                &fresh);
  }
  StatePiece<N> piece(team);
  piece.load(walk.receive_state(number));
  team.sync();
  if (last_warp && team.lane == 0) walk.ask_for_state(number + job.states_at_once);
  std::uint32_t* turns = job.states.turns + item.slot * job.states.turns_stride +
                         std::int64_t{item.head} * sizes.angles;
  turn_phases(sizes, team, tile, s, count + 1, item.fold ? count - 1 : -1, turns);
  team.sync();
  const int first = item.fold ? count : 0;
  score(job, team, tile, segment, s, first, count, fresh.now);
  if (item.fold) {
    fold(sizes, team, tile, segment, s, count, piece);
    piece.store(job.states.ssm + item.slot * job.states.ssm_stride +
                std::int64_t{item.head} * N * kHeadDim);
  } else {
    team.sync();
  }
  read_state<N, R>(team, s, piece);
  const float entries = read_entries(sizes, tile, s, at, first, count, own.x);
  if (at.split > 0) {
    s.partial[((kTeamWarps + at.split - 1) * R + at.rank) * kHeadDim + at.column] = entries;
  }
  team.sync();
  finish<N, R>(job, item, tile, s, at, entries, own);
  append_item(job, item, at, fresh, own.x);
  team.sync();
  if (last_warp) walk.ask_for_tile(number + walk.kInputs, team.lane);
}

// Asks for what the heads of item `from` share, by the block's last warp.
template <int N, int R, int T>
__device__ void ask_for_segment(const Walk<N, R, T>& walk, int from) {
  if (static_cast<int>(threadIdx.x) / kWarpLanes != walk.shared.kWarps - 1) return;
  const RingItem start = walk.item(from);
  const int group = start.head / (walk.job.sizes.heads / walk.job.sizes.groups);
  request_segment(walk.job, walk.shared.rows[start.row - walk.first_row], group,
                  walk.shared.segment, walk.shared.segment_full);
}

// The rows of the block's items, the barriers, and the first requests.
template <int N, int R, int T>
__device__ void begin_walk(const Walk<N, R, T>& walk) {
  const RingJob& job = walk.job;
  const RingShared<N, R, T>& shared = walk.shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = (walk.end - 1) / job.sizes.heads - walk.first_row + 1;
  for (int i = thread; i < rows; i += shared.kThreads) {
    const std::int32_t slot = job.slots[walk.first_row + i];
    shared.rows[i] = {slot, job.states.ring.cursors[slot]};
  }
  if (thread == 0) {
    for (int i = 0; i < job.states_at_once; ++i) barrier_init(shared.state_full + i, 1);
    for (int i = 0; i < walk.kInputs; ++i) barrier_init(shared.tile_full + i, 1);
    barrier_init(shared.segment_full, 1);
    barrier_init_done();
  }
  __syncthreads();
  if (thread == 0) {
    for (int i = 0; i < job.states_at_once; ++i) walk.ask_for_state(i);
  }
  if (thread / kWarpLanes == 1) {
    for (int i = 0; i < walk.kInputs; ++i) walk.ask_for_tile(i, thread % kWarpLanes);
  }
  ask_for_segment(walk, walk.begin);
}

}  // namespace
}  // namespace mamba3
