// The step with a ring of deferred tokens. A block stays on its multiprocessor and walks its share
// of the (row, head) items, with as many states on the way as its shared memory holds, so that the
// memory is busy whatever the arithmetic does.
#include <algorithm>
#include <cstdint>

#include "core/check.h"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"
#include "ops/mamba3_step/ring_item_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kMostItemsPerBlock = 512;  // bounds the rows that a block keeps

// One block's items, and where the memory of each comes to. An item's number is its place in the
// block's share.
template <int N, int R>
struct Walk {
  const RingJob& job;
  const RingShared<N, R>& shared;
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
    wait_barrier(shared.state_full + place,
                 static_cast<unsigned>(number / job.states_at_once) & 1u);
    return shared.state(place);
  }
  __device__ RingTile<N, R> receive_tile(int number) const {
    const int place = number % kInputs;
    wait_barrier(shared.tile_full + place, static_cast<unsigned>(number / kInputs) & 1u);
    return shared.tile(job, place);
  }
};

// A block's share of the items: as much work as every other block's, where an item whose state is
// written counts twice. So sequences that fold at different times keep no block waiting.
template <int N, int R>
__device__ void take_share(const RingJob& job, const RingShared<N, R>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpLanes, warp = thread / kWarpLanes;
  const int heads = job.sizes.heads;
  const int rows = job.items / heads;
  const int rows_each = (rows + kRingThreads - 1) / kRingThreads;
  const int first = min(thread * rows_each, rows), last = min(first + rows_each, rows);
  const auto cost = [&](int row) {  // of each of its items
    const std::int32_t slot = job.slots[row];
    return RingItem(job, row, 0, {slot, job.states.ring.cursors[slot]}).fold ? 2 : 1;
  };
  int own = 0;
  for (int row = first; row < last; ++row) own += heads * cost(row);
  int until = own;  // of this thread's rows and those before them
  for (int step = 1; step < kWarpLanes; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, until, step);
    if (lane >= step) until += before;
  }
  if (lane == kWarpLanes - 1) shared.warp_costs[warp] = until;
  __syncthreads();
  int all = 0;
  for (int i = 0; i < kRingWarps; ++i) {
    if (i < warp) until += shared.warp_costs[i];
    all += shared.warp_costs[i];
  }
  for (int edge = 0; edge < 2; ++edge) {
    const auto at = static_cast<int>(std::int64_t{all} * (blockIdx.x + edge) / gridDim.x);
    if (at == all && thread == 0) shared.share[edge] = job.items;
    int before = until - own;
    if (at < before || at >= until) continue;
    for (int row = first; row < last; ++row) {
      const int each = cost(row);
      if (at < before + heads * each) {
        shared.share[edge] = row * heads + (at - before + each - 1) / each;
        break;
      }
      before += heads * each;
    }
  }
  __syncthreads();
}

// Items of one row and group from `begin` on.
__device__ int segment_end(const RingJob& job, int begin, int end) {
  const int heads = job.sizes.heads;
  const int group_heads = heads / job.sizes.groups;
  const int group_begin = begin / group_heads * group_heads;  // heads is a multiple of group_heads
  return min(min(end, group_begin + group_heads), begin + kMostSegmentHeads);
}

// What the new token brings for all heads of the segment, normalised and in double where the state
// needs it. Each part by a warp or threads of its own.
template <int N, int R>
__device__ void prepare_segment(const RingJob& job, const RingSegment<N, R>& segment,
                                std::int64_t row, int group, int head, int heads) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Columns& in = job.columns;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpLanes, lane = thread % kWarpLanes;
  const std::int64_t from = row * in.row_stride;
  const bool mimo = R > 1 || sizes.mimo;
  if (warp < 2 * R) {
    const int r = warp / 2;
    const std::int64_t at = from + (std::int64_t{r} * sizes.groups + group) * N;
    const float* raw = (warp % 2 == 0 ? in.in_b : in.out_c) + at;
    const float* weight = warp % 2 == 0 ? job.params.in_b_norm : job.params.out_c_norm;
    float* out = (warp % 2 == 0 ? segment.in_b : segment.out_c) + r * N;
    warp_norm_row(raw, weight, N, lane, [&](int j, float value) {
      const int place = !mimo ? j : j < N / 2 ? 2 * j : 2 * (j - N / 2) + 1;
      out[place] = value;
    });
  }
  const int last = kRingThreads - 1 - thread;  // from the last thread on: other warps
  double* half_tanhs = segment.half_tanh + job.states.ring.tokens * sizes.angles;
  if (last < sizes.angles) half_tanhs[last] = half_tanh(in.angle_raw[from + last]);
  const int own = last - kMostSegmentHeads;
  if (own >= 0 && own < heads) {
    const std::int64_t at = from + head + own;
    const TokenNumbers numbers = token_numbers(sizes, in.dt_raw[at], job.params.dt_bias[head + own],
                                               in.decay_raw[at], in.trap_raw[at]);
    RingToken& out = segment.tokens[own];
    out.dt = numbers.dt;
    out.log_decay = numbers.log_decay;
    out.now = static_cast<float>(numbers.now);
    out.carry = static_cast<float>(numbers.carry);
    out.fill[0] = out.fill[1] = 0;
  }
}

// The rows that all heads share enter the ring once: with the first head of the group, or of all.
template <int N, int R>
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
  for (int i = thread; i < R * N; i += kRingThreads) in_b[i] = segment.in_b[i];
  if (head != 0) return;
  double* half_tanhs = ring_part(ring, ring.half_tanh, at.slot) + place * sizes.angles;
  for (int i = thread; i < sizes.angles; i += kRingThreads) {
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

template <class Y>
__device__ __forceinline__ void store_output(void* y, std::int64_t at, float value) {
  static_cast<Y*>(y)[at] = static_cast<Y>(value);
}

// What a thread needs of the columns and of D.
struct ItemColumns {
  float x, z, skip;
};

// Sums over warps and splits, skip, gate, sum over ranks.
template <int N, int R, class Y>
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
    store_output<Y>(job.y, item.row * job.y_stride + item.head * kHeadDim + at.column, y);
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

template <int N, int R, class Y>
__device__ void do_item(const Walk<N, R>& walk, const Team& team, const RingItem& item, int number,
                        const RingScratch<N, R>& s, const RingToken& fresh) {
  const RingJob& job = walk.job;
  const TokenSizes& sizes = job.sizes;
  const RingSegment<N, R>& segment = walk.shared.segment;
  const int count = item.count;
  const bool last_warp = team.warp == kTeamWarps - 1;
  const OutputPlace<R> at(team.thread);
  const std::int64_t column = item.row * job.columns.row_stride + item.head * kHeadDim + at.column;
  const ItemColumns own{job.columns.x[column], job.columns.z[column], job.params.skip[item.head]};
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
  finish<N, R, Y>(job, item, tile, s, at, entries, own);
  append_item(job, item, at, fresh, own.x);
  team.sync();
  if (last_warp) walk.ask_for_tile(number + kInputs, team.lane);
}

// The rows of the block's items, the barriers, and the first requests.
template <int N, int R>
__device__ void begin_walk(const Walk<N, R>& walk) {
  const RingJob& job = walk.job;
  const RingShared<N, R>& shared = walk.shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = (walk.end - 1) / job.sizes.heads - walk.first_row + 1;
  for (int i = thread; i < rows; i += kRingThreads) {
    const std::int32_t slot = job.slots[walk.first_row + i];
    shared.rows[i] = {slot, job.states.ring.cursors[slot]};
  }
  if (thread == 0) {
    for (int i = 0; i < job.states_at_once; ++i) init_barrier(shared.state_full + i);
    for (int i = 0; i < kInputs; ++i) init_barrier(shared.tile_full + i);
    init_barrier(shared.segment_full);
    publish_barriers();
  }
  __syncthreads();
  if (thread == 0) {
    for (int i = 0; i < job.states_at_once; ++i) walk.ask_for_state(i);
  }
  if (thread / kWarpLanes == 1) {
    for (int i = 0; i < kInputs; ++i) walk.ask_for_tile(i, thread % kWarpLanes);
  }
}

template <int N, int R, class Y>
__global__ void __launch_bounds__(kRingThreads, 1) ring_step_kernel(const RingJob job) {
  extern __shared__ float4 memory[];
  SharedParts parts(reinterpret_cast<float*>(memory));
  const TokenSizes& sizes = job.sizes;
  const RingShared<N, R> shared(sizes, static_cast<int>(job.states.ring.tokens), job.rows_at_most,
                                parts);
  const int thread = static_cast<int>(threadIdx.x);
  const Team team(thread / kTeamThreads);
  const RingScratch<N, R> scratch = shared.scratch(job, team.number);
  // States, ring and slots are from kernels long ago, unless the caller says otherwise.
  if (!job.early_states) wait_for_predecessor();
  take_share(job, shared);
  const int begin = shared.share[0], end = shared.share[1];
  const Walk<N, R> walk{job, shared, begin, end, begin / sizes.heads};
  if (begin < end) begin_walk(walk);
  if (job.early_states) wait_for_predecessor();
  start_successor();

  unsigned parity = 0;
  for (int from = begin; from < end; parity ^= 1u) {
    const int to = segment_end(job, from, end);
    const RingItem start = walk.item(from);
    const RingRow& at = shared.rows[start.row - walk.first_row];
    const int group = start.head / (sizes.heads / sizes.groups);
    if (thread / kWarpLanes == kRingWarps - 1) {
      request_segment(job, at, group, shared.segment, shared.segment_full);
    }
    prepare_segment(job, shared.segment, start.row, group, start.head, to - from);
    wait_barrier(shared.segment_full, parity);
    __syncthreads();
    append_segment(job, shared.segment, at, group, start.head);
    for (int i = from + (from - begin + team.number) % kTeams; i < to; i += kTeams) {
      const RingItem item(job, start.row, start.head + i - from, at);
      do_item<N, R, Y>(walk, team, item, i - begin, scratch, shared.segment.tokens[i - from]);
    }
    __syncthreads();
    from = to;
  }
}

// Folds a whole ring into the canonical tuple, one item a block.
template <int N, int R>
__global__ void __launch_bounds__(kTeamThreads) ring_settle_kernel(const RingJob job) {
  extern __shared__ float4 memory[];
  SharedParts parts(reinterpret_cast<float*>(memory));
  const TokenSizes& sizes = job.sizes;
  const Mamba3Ring& ring = job.states.ring;
  const RingShared<N, R> shared(sizes, static_cast<int>(ring.tokens), 1, parts);
  const RingTile<N, R> tile = shared.tile(job, 0);
  const RingScratch<N, R> s = shared.scratch(job, 0);
  const Team team(0);
  const std::int64_t row = blockIdx.x / sizes.heads;
  const int head = static_cast<int>(blockIdx.x % sizes.heads);
  const std::int32_t slot = job.slots[row];
  const RingItem item(job, row, head, {slot, ring.cursors[slot]});
  const int count = item.count;
  if (count == 0) return;
  if (team.thread == 0) {
    init_barrier(shared.state_full);
    init_barrier(shared.tile_full);
    init_barrier(shared.segment_full);
    publish_barriers();
  }
  __syncthreads();
  if (team.warp == 0) {
    const int group = head / (sizes.heads / sizes.groups);
    request_segment(job, {slot, ring.cursors[slot]}, group, shared.segment, shared.segment_full);
    request_tile(job, item, tile, shared.tile_full, team.lane);
    if (team.lane == 0) request_state<N>(job, item, shared.state(0), shared.state_full);
  }
  wait_barrier(shared.segment_full, 0);
  wait_barrier(shared.tile_full, 0);
  wait_barrier(shared.state_full, 0);
  if (team.warp == kTeamWarps - 1) {
    weigh_entries(tile, s, count, true, nullptr, team.lane);
  } else {
    move_phases(sizes, static_cast<int>(ring.tokens), team, tile, shared.segment, s, count,
                nullptr);
  }
  team.sync();
  turn_phases(
      sizes, team, tile, s, count, count - 1,
      job.states.turns + slot * job.states.turns_stride + std::int64_t{head} * sizes.angles);
  team.sync();
  StatePiece<N> piece(team);
  piece.load(shared.state(0));
  fold(sizes, team, tile, shared.segment, s, count, piece);
  piece.store(job.states.ssm + slot * job.states.ssm_stride + std::int64_t{head} * N * kHeadDim);
  // The newest entry's rows are the last that were prepared: R divides kFoldRows.
  float* k = job.states.k + slot * job.states.k_stride + std::int64_t{head} * N;
  for (int i = team.thread; i < R * N; i += kTeamThreads) {
    const int row_k = ((count - 1) * R + i / N) % kFoldRows;
    k[std::int64_t{i / N} * sizes.heads * N + i % N] = s.k_rows[row_k * N + i % N];
  }
  float* v = job.states.v + slot * job.states.v_stride + std::int64_t{head} * kHeadDim;
  if (team.thread < kHeadDim) v[team.thread] = tile.x[(count - 1) * kHeadDim + team.thread];
}

enum class CursorChange : std::uint8_t { kAdvance, kRollBack, kClear };

__global__ void cursor_kernel(const Mamba3Ring ring, const std::int32_t* slots,
                              const std::int32_t* tokens, int rows, CursorChange change) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= rows) return;
  const std::int32_t slot = slots[row];
  RingCursor cursor = unpack_cursor(ring.cursors[slot]);
  if (change == CursorChange::kAdvance) {
    cursor = advanced_cursor(cursor, static_cast<std::uint32_t>(ring.tokens), ring.stagger,
                             static_cast<std::uint32_t>(slot));
  } else if (change == CursorChange::kRollBack) {
    cursor = rolled_back_cursor(cursor, static_cast<std::uint32_t>(max(tokens[row], 0)));
  } else {
    cursor.count = 0;
  }
  ring.cursors[slot] = pack_cursor(cursor);
  // A kernel that was started early, two or more behind this one, reads it without waiting.
  __threadfence();
}

void change_cursors(const RingCursorArgs& args, const std::int32_t* tokens, CursorChange change,
                    Gpu& gpu) {
  constexpr int kBlock = 128;
  const auto rows = static_cast<std::int64_t>(args.slots.size());
  if (rows == 0) return;
  const auto stream = static_cast<cudaStream_t>(gpu.stream());
  cursor_kernel<<<grid_blocks(rows, kBlock), kBlock, 0, stream>>>(
      args.ring, args.slots.data(), tokens, static_cast<int>(rows), change);
  check_launch("mamba3_ring's cursors");
}

template <int N, int R>
int shared_bytes(const RingJob& job, int states) {
  SharedParts parts(nullptr);
  const RingShared<N, R> measured(job.sizes, static_cast<int>(job.states.ring.tokens),
                                  job.rows_at_most, parts);
  return parts.bytes() + states * N * kHeadDim * static_cast<int>(sizeof(float));
}

void allow_shared(const void* kernel, int bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "mamba3_ring's shared memory");
}

template <int N, int R>
void launch_step(RingJob job, Context& ctx, bool early) {
  constexpr int kMostSharedBytes = 227 << 10;
  const std::int64_t shares = std::max<std::int64_t>(
      ctx.gpu()->info().multiprocessors, (job.items + kMostItemsPerBlock - 1) / kMostItemsPerBlock);
  const std::int64_t blocks = std::min<std::int64_t>(job.items, shares);
  // Twice as many as on average, where none of a block's items folds and all others do.
  const std::int64_t items_at_most =
      std::min<std::int64_t>(job.items, 2 * std::int64_t{job.items} / blocks + 2);
  job.rows_at_most = static_cast<int>((items_at_most + job.sizes.heads - 2) / job.sizes.heads + 1);
  job.states_at_once = kMostStates;
  while (job.states_at_once > 1 && shared_bytes<N, R>(job, job.states_at_once) > kMostSharedBytes) {
    --job.states_at_once;
  }
  const int bytes = shared_bytes<N, R>(job, job.states_at_once);
  const auto kernel = ring_step_kernel<N, R, float>;
  allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  if (early) {
    launch_dependent("mamba3_step with a ring", kernel,
                     {.grid = grid_blocks(blocks),
                      .threads = kRingThreads,
                      .shared_bytes = static_cast<std::size_t>(bytes)},
                     ctx, job);
    return;
  }
  kernel<<<grid_blocks(blocks), kRingThreads, static_cast<std::size_t>(bytes), stream_of(ctx)>>>(
      job);
  check_launch("mamba3_step with a ring");
}

template <int N, int R>
void launch_settle(RingJob job, cudaStream_t stream) {
  job.states_at_once = 1;
  job.rows_at_most = 1;
  const int bytes = shared_bytes<N, R>(job, 1);
  const auto kernel = ring_settle_kernel<N, R>;
  allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  kernel<<<grid_blocks(job.items), kTeamThreads, static_cast<std::size_t>(bytes), stream>>>(job);
  check_launch("mamba3_ring_settle");
}

// body(state size, rank) with the two as constants.
template <class Body>
void for_shape(const Mamba3Dims& dims, const Body& body) {
  const auto with_rank = [&](auto n) {
    if (dims.rank == 1) return body(n, std::integral_constant<int, 1>());
    if (dims.rank == 2) return body(n, std::integral_constant<int, 2>());
    return body(n, std::integral_constant<int, 4>());
  };
  if (dims.state == 64) return with_rank(std::integral_constant<int, 64>());
  with_rank(std::integral_constant<int, 128>());
}

bool whole_pieces(const void* data, std::int64_t stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % 4 == 0;
}

RingJob ring_job(const Mamba3Dims& dims, const Mamba3Params& params,
                 std::span<const std::int32_t> slots, const Mamba3States& states) {
  check_input(
      whole_pieces(states.ssm, states.ssm_stride) && whole_pieces(states.k, states.k_stride) &&
          whole_pieces(states.v, states.v_stride) &&
          whole_pieces(states.turns, states.turns_stride) && whole_pieces(states.ring.in_b, 0),
      "a state with a ring does not begin on a multiple of 16 bytes in every slot; "
      "expected it to");
  for (const float* part :
       {params.in_b_bias, params.out_c_bias, params.mimo_x, params.mimo_z, params.mimo_o}) {
    check_input(whole_pieces(part, 0),
                "a parameter of a layer with a ring does not begin on a multiple of 16 bytes; "
                "expected it to");
  }
  const auto rows = static_cast<std::int64_t>(slots.size());
  grid_blocks(rows * dims.heads);  // the bound of a call
  RingJob job{};
  job.sizes = token_sizes(dims);
  job.params = params;
  job.slots = slots.data();
  job.states = states;
  job.items = static_cast<int>(rows * dims.heads);
  return job;
}

}  // namespace

void mamba3_ring_step_cuda(const Mamba3StepArgs& args, Context& ctx) {
  RingJob job = ring_job(args.dims, args.params, args.slots, args.states);
  job.columns = args.columns;
  job.y = args.y.data;
  job.y_stride = args.y.stride[0];
  job.early_states = args.states_are_old;
  for_shape(args.dims,
            [&](auto n, auto r) { launch_step<n(), r()>(job, ctx, args.states_are_old); });
}

void mamba3_ring_settle_cuda(const RingSettleArgs& args, Gpu& gpu) {
  if (args.slots.empty()) return;
  const RingJob job = ring_job(args.dims, args.params, args.slots, args.states);
  const auto stream = static_cast<cudaStream_t>(gpu.stream());
  for_shape(args.dims, [&](auto n, auto r) { launch_settle<n(), r()>(job, stream); });
}

void mamba3_ring_advance_cuda(const RingCursorArgs& args, Gpu& gpu) {
  change_cursors(args, nullptr, CursorChange::kAdvance, gpu);
}
void mamba3_ring_roll_back_cuda(const RingCursorArgs& args, std::span<const std::int32_t> tokens,
                                Gpu& gpu) {
  change_cursors(args, tokens.data(), CursorChange::kRollBack, gpu);
}
void mamba3_ring_clear_cuda(const RingCursorArgs& args, Gpu& gpu) {
  change_cursors(args, nullptr, CursorChange::kClear, gpu);
}

}  // namespace mamba3
