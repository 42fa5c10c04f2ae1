// The step with a ring of deferred tokens. A block of two teams stays on its multiprocessor and
// walks its share of the (row, head) items, with as many states on the way as its shared memory
// holds, so that the memory is busy whatever the arithmetic does. Items so few that all are under
// way at once get a block of one team each, which leaves room for the weights of the next product.
#include <algorithm>
#include <cstdint>

#include "core/check.h"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"
#include "ops/mamba3_step/ring_walk_cuda.cuh"

// Code for other cards than Hopper has none of what the kernels call.
#pragma nv_diag_suppress 177

namespace mamba3 {
namespace {

constexpr int kMostItemsPerBlock = 512;  // bounds the rows that a block keeps

// A block's share of the items: as much work as every other block's, where an item whose state is
// written counts twice. So sequences that fold at different times keep no block waiting.
template <int N, int R, int T>
__device__ void take_share(const RingJob& job, const RingShared<N, R, T>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpLanes, warp = thread / kWarpLanes;
  const int heads = job.sizes.heads;
  const int rows = job.items / heads;
  const int rows_each = (rows + shared.kThreads - 1) / shared.kThreads;
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
  for (int i = 0; i < shared.kWarps; ++i) {
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

template <int N, int R, int T>
__global__ void __maxnreg__(T == 1 ? 112 : 128) ring_step_kernel(const RingJob job) {
#if __CUDA_ARCH__ >= 900  // no other card has these copies
  extern __shared__ float4 memory[];
  SharedParts parts(reinterpret_cast<float*>(memory));
  const TokenSizes& sizes = job.sizes;
  const RingShared<N, R, T> shared(sizes, static_cast<int>(job.states.ring.tokens),
                                   job.rows_at_most, parts);
  const int thread = static_cast<int>(threadIdx.x);
  const Team team(thread / kTeamThreads);
  const RingScratch<N, R> scratch = shared.scratch(job, team.number);
  // States, ring and slots are from kernels long ago, unless the caller says otherwise.
  if (!job.early_states) wait_for_predecessor();
  int begin = static_cast<int>(blockIdx.x), end = begin + 1;
  if constexpr (T > 1) {
    take_share(job, shared);
    begin = shared.share[0], end = shared.share[1];
  }
  const Walk<N, R, T> walk{job, shared, begin, end, begin / sizes.heads};
  if (begin < end) begin_walk(walk);
  fetch_parameters<N>(job.params, begin % sizes.heads);
  if (job.early_states) wait_for_predecessor();
  // Not before: what the next kernel fetches would delay the one ahead.
  start_successor();

  unsigned parity = 0;
  for (int from = begin; from < end; parity ^= 1u) {
    const int to = segment_end(job, from, end);
    const RingItem start = walk.item(from);
    const RingRow& at = shared.rows[start.row - walk.first_row];
    const int group = start.head / (sizes.heads / sizes.groups);
    if (from > begin) ask_for_segment(walk, from);
    const OutputPlace<R> place(team.thread);
    const ItemColumns first(job, start, place);  // before what it would wait for
    prepare_segment<N, R, T>(job, shared.segment, start.row, group, start.head, to - from);
    barrier_wait(shared.segment_full, parity);
    __syncthreads();
    append_segment<N, R, T>(job, shared.segment, at, group, start.head);
    for (int i = from + (from - begin + team.number) % T; i < to; i += T) {
      const RingItem item(job, start.row, start.head + i - from, at);
      const ItemColumns own = T == 1 ? first : ItemColumns(job, item, place);
      do_item<N, R, T>(walk, team, item, own, i - begin, scratch, shared.segment.tokens[i - from]);
    }
    __syncthreads();
    from = to;
  }
#endif
}

// Folds a whole ring into the canonical tuple, one item a block.
template <int N, int R>
__global__ void __launch_bounds__(kTeamThreads) ring_settle_kernel(const RingJob job) {
#if __CUDA_ARCH__ >= 900  // no other card has these copies
  extern __shared__ float4 memory[];
  SharedParts parts(reinterpret_cast<float*>(memory));
  const TokenSizes& sizes = job.sizes;
  const Mamba3Ring& ring = job.states.ring;
  const RingShared<N, R, 1> shared(sizes, static_cast<int>(ring.tokens), 1, parts);
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
    barrier_init(shared.state_full, 1);
    barrier_init(shared.tile_full, 1);
    barrier_init(shared.segment_full, 1);
    barrier_init_done();
  }
  __syncthreads();
  if (team.warp == 0) {
    const int group = head / (sizes.heads / sizes.groups);
    request_segment(job, {slot, ring.cursors[slot]}, group, shared.segment, shared.segment_full);
    request_tile(job, item, tile, shared.tile_full, team.lane);
    if (team.lane == 0) request_state<N>(job, item, shared.state(0), shared.state_full);
  }
  barrier_wait(shared.segment_full, 0);
  barrier_wait(shared.tile_full, 0);
  barrier_wait(shared.state_full, 0);
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
#endif
}

enum class CursorChange : std::uint8_t { kAdvance, kRollBack, kClear };

__global__ void cursor_kernel(const Mamba3Ring ring, const std::int32_t* slots,
                              const std::int32_t* tokens, int rows, CursorChange change) {
  wait_for_predecessor();
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
  // A kernel that was started early, two or more behind this one, reads it without waiting: so none
  // is let go before the end.
  __threadfence();
}

void change_cursors(const RingCursorArgs& args, const std::int32_t* tokens, CursorChange change,
                    Gpu& gpu) {
  constexpr int kBlock = 128;
  const auto rows = static_cast<std::int64_t>(args.slots.size());
  if (rows == 0) return;
  launch_dependent("mamba3_ring's cursors", cursor_kernel, {grid_blocks(rows, kBlock), kBlock}, gpu,
                   args.ring, args.slots.data(), tokens, static_cast<int>(rows), change);
}

template <int N, int R, int T>
int shared_bytes(const RingJob& job, int states) {
  SharedParts parts(nullptr);
  const RingShared<N, R, T> measured(job.sizes, static_cast<int>(job.states.ring.tokens),
                                     job.rows_at_most, parts);
  return parts.bytes() + states * N * kHeadDim * static_cast<int>(sizeof(float));
}

template <int N, int R, int T>
void start_step(const RingJob& job, std::int64_t blocks, bool early, Context& ctx) {
  const int bytes = shared_bytes<N, R, T>(job, job.states_at_once);
  const auto kernel = ring_step_kernel<N, R, T>;
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<std::size_t>(bytes),
               "mamba3_ring's shared memory");
  const KernelShape shape{grid_blocks(blocks), T * kTeamThreads, static_cast<std::size_t>(bytes)};
  if (early) return launch_dependent("mamba3_step with a ring", kernel, shape, ctx, job);
  kernel<<<shape.grid, shape.threads, shape.shared_bytes, stream_of(ctx)>>>(job);
  check_launch("mamba3_step with a ring");
}

template <int N, int R>
void launch_step(RingJob job, Context& ctx, bool early) {
  constexpr int kMostSharedBytes = 227 << 10;
  const std::int64_t multiprocessors = ctx.gpu()->info().multiprocessors;
  job.states_at_once = 1;
  job.rows_at_most = 1;
  if (job.items <= 2 * multiprocessors) return start_step<N, R, 1>(job, job.items, early, ctx);
  const std::int64_t shares = std::max<std::int64_t>(
      multiprocessors, (job.items + kMostItemsPerBlock - 1) / kMostItemsPerBlock);
  const std::int64_t blocks = std::min<std::int64_t>(job.items, shares);
  // Twice as many as on average, where none of a block's items folds and all others do.
  const std::int64_t items_at_most =
      std::min<std::int64_t>(job.items, 2 * std::int64_t{job.items} / blocks + 2);
  job.rows_at_most = static_cast<int>((items_at_most + job.sizes.heads - 2) / job.sizes.heads + 1);
  job.states_at_once = kMostStates;
  while (job.states_at_once > 1 &&
         shared_bytes<N, R, 2>(job, job.states_at_once) > kMostSharedBytes) {
    --job.states_at_once;
  }
  start_step<N, R, 2>(job, blocks, early, ctx);
}

template <int N, int R>
void launch_settle(RingJob job, cudaStream_t stream) {
  job.states_at_once = 1;
  job.rows_at_most = 1;
  const int bytes = shared_bytes<N, R, 1>(job, 1);
  const auto kernel = ring_settle_kernel<N, R>;
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<std::size_t>(bytes),
               "mamba3_ring's shared memory");
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
  job.y_is_bf16 = args.y.is_bf16();
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
