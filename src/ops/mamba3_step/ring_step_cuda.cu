// The step with a ring of deferred tokens. A block stays on its multiprocessor and its teams walk
// its share of the (row, head) items, each with a state on the way or at work, so that the memory
// is busy whatever the arithmetic does. Items so few that all are under way at once get a block
// with one team each, which leaves room for the weights of the next product.
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
constexpr int kMostRegisters = 96;       // for four teams and the warps that serve them

// A block's share of the items: as much work as every other block's, where an item whose state is
// written counts twice. So sequences that fold at different times keep no block waiting.
template <int N, int R>
__device__ void take_share(const RingJob& job, const RingShared<N, R>& shared) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int lane = thread % kWarpLanes, warp = thread / kWarpLanes;
  const int heads = job.sizes.heads;
  const int rows = job.items / heads;
  const int rows_each = (rows + threads - 1) / threads;
  const int first = min(thread * rows_each, rows), last = min(first + rows_each, rows);
  const auto cost = [&](int row) {  // of each of its items
    const std::int32_t slot = job.slots[row];
    return RingStep(job, row, {slot, job.states.ring.cursors[slot]}).fold ? 2 : 1;
  };
  int own = 0;
  for (int row = first; row < last; ++row) own += heads * cost(row);
  int until = warp_inclusive_sum(own, lane);  // of this thread's rows and those before them
  if (lane == kWarpLanes - 1) shared.shares().warp_costs[warp] = until;
  __syncthreads();
  int all = 0;
  for (int i = 0; i < threads / kWarpLanes; ++i) {
    if (i < warp) until += shared.shares().warp_costs[i];
    all += shared.shares().warp_costs[i];
  }
  for (int edge = 0; edge < 2; ++edge) {
    const auto at = static_cast<int>(std::int64_t{all} * (blockIdx.x + edge) / gridDim.x);
    if (at == all && thread == 0) shared.shares().share[edge] = job.items;
    int before = until - own;
    if (at < before || at >= until) continue;
    for (int row = first; row < last; ++row) {
      const int each = cost(row);
      if (at < before + heads * each) {
        shared.shares().share[edge] = row * heads + (at - before + each - 1) / each;
        break;
      }
      before += heads * each;
    }
  }
  __syncthreads();
}

template <int N, int R, int T>
__global__ void __maxnreg__(kMostRegisters) ring_step_kernel(const RingJob job) {
#if __CUDA_ARCH__ >= 900  // no other card has these copies
  extern __shared__ __align__(128) char memory[];
  const TokenSizes& sizes = job.sizes;
  const RingShared<N, R> shared{job, memory};
  const Walk<N, R, T> walk{job, shared};
  // States, ring and slots are from kernels long ago, unless the caller says otherwise.
  if (!job.early_states) wait_for_predecessor();
  int begin = static_cast<int>(blockIdx.x), end = begin + 1;
  if (!job.one_item) {
    take_share(job, shared);
    begin = shared.shares().share[0], end = shared.shares().share[1];
    __syncthreads();
  }
  const int serving = static_cast<int>(threadIdx.x) / kWarpLanes - job.teams * kTeamWarps;
  const bool serves = serving >= 0 && serving < job.teams;
  if (begin < end) begin_walk(walk, begin, end, serves);
  fetch_parameters<N>(job.params, begin % sizes.heads);
  if (job.early_states) wait_for_predecessor();
  // Not before: what the next kernel fetches would delay the one ahead.
  start_successor();

  int turn = 0;
  unsigned parity = 0;
  for (int from = begin; from < end; parity ^= 1u) {
    from = prepare_segment(walk, from, end, parity);
    if (serving < job.teams) {
      while (ItemPlace(walk, turn).number < shared.segment().end) take_item(walk, turn++, serves);
    }
    __syncthreads();
  }
#endif
}

// Folds a whole ring into the canonical tuple, one item a block.
template <int N, int R>
__global__ void __launch_bounds__(kTeamThreads) ring_settle_kernel(const RingJob job) {
#if __CUDA_ARCH__ >= 900  // no other card has these copies
  extern __shared__ __align__(128) char memory[];
  const Mamba3Ring& ring = job.states.ring;
  const RingShared<N, R> shared{job, memory};
  TeamMemory<N, R>& own = shared.own();
  RingSegment<N, R>& segment = shared.segment();
  const Team team;
  const int heads = job.sizes.heads;
  const std::int64_t row = blockIdx.x / heads;
  const int head = static_cast<int>(blockIdx.x % heads);
  const std::int32_t slot = job.slots[row];
  const RingRow at{slot, ring.cursors[slot]};
  const RingStep step(job, row, at);
  if (step.count == 0) return;
  if (team.thread == 0) {
    init_barriers(own);
    barrier_init(&segment.full, 1);
    barrier_init_done();
  }
  __syncthreads();
  if (team.warp == 0) {
    if (team.lane == 0) request_state(job, step, head, own);
    request_keys(job, step, head, own, team.lane);
    request_values(job, step, head, own, team.lane);
    request_segment(job, at, head / (heads / job.sizes.groups), segment, team.lane);
  }
  barrier_wait(&segment.full, 0);
  barrier_wait(&own.keys_full, 0);
  barrier_wait(&own.values_full, 0);
  barrier_wait(&own.state_full, 0);
  if (team.warp == 0) weigh_entries(job, own, 0, step.count, true, nullptr, team.lane);
  __syncthreads();
  settle_item<kPairs<N>>(job, team, step, head, own, segment);
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
void start_step(RingJob job, std::int64_t blocks, Context& ctx) {
  const int bytes = RingShared<N, R>::measure(job);
  const auto kernel = ring_step_kernel<N, R, T>;
  allow_shared(reinterpret_cast<const void*>(kernel), static_cast<std::size_t>(bytes),
               "mamba3_ring's shared memory");
  // Those that serve fill up four warps: the more to prepare a segment.
  const auto threads = static_cast<unsigned>((job.teams + 1) * kTeamThreads);
  const KernelShape shape{grid_blocks(blocks), threads, static_cast<std::size_t>(bytes)};
  if (job.early_states) return launch_dependent("mamba3_step with a ring", kernel, shape, ctx, job);
  kernel<<<shape.grid, shape.threads, shape.shared_bytes, stream_of(ctx)>>>(job);
  check_launch("mamba3_step with a ring");
}

// With as many of a lane's pairs rotated as the layer's angles need: most have few.
template <int N, int R>
void start_step(const RingJob& job, std::int64_t blocks, Context& ctx) {
  constexpr int kAll = kPairs<N>;
  if (job.sizes.angles > kPairStep) return start_step<N, R, kAll>(job, blocks, ctx);
  start_step<N, R, 1>(job, blocks, ctx);
}

// One for each multiprocessor; a few less where no block then changes rows, which it would wait
// for: bandwidth does not miss so few.
std::int64_t blocks_that_walk(const RingJob& job, std::int64_t multiprocessors) {
  const std::int64_t heads = job.sizes.heads, items = job.items;
  for (std::int64_t blocks = multiprocessors; blocks > multiprocessors * 15 / 16; --blocks) {
    const std::int64_t each = items / blocks;
    if (items % blocks == 0 && (each % heads == 0 || heads % each == 0)) return blocks;
  }
  return std::max(multiprocessors, (items + kMostItemsPerBlock - 1) / kMostItemsPerBlock);
}

template <int N, int R>
void launch_step(RingJob job, Context& ctx) {
  constexpr int kMostSharedBytes = 227 << 10;
  const std::int64_t multiprocessors = ctx.gpu()->info().multiprocessors;
  job.teams = 1;
  job.rows_at_most = 1;
  job.one_item = job.items <= 2 * multiprocessors;
  if (job.one_item) return start_step<N, R>(job, job.items, ctx);
  const std::int64_t blocks = blocks_that_walk(job, multiprocessors);
  // Twice as many as on average, where none of a block's items folds and all others do.
  const std::int64_t items_at_most =
      std::min<std::int64_t>(job.items, 2 * std::int64_t{job.items} / blocks + 2);
  job.rows_at_most = static_cast<int>((items_at_most + job.sizes.heads - 2) / job.sizes.heads + 1);
  job.teams = kMostTeams;
  while (job.teams > 1 && RingShared<N, R>::measure(job) > kMostSharedBytes) --job.teams;
  start_step<N, R>(job, blocks, ctx);
}

template <int N, int R>
void launch_settle(RingJob job, cudaStream_t stream) {
  job.teams = 1;
  job.rows_at_most = 1;
  const int bytes = RingShared<N, R>::measure(job);
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
  for_shape(args.dims, [&](auto n, auto r) { launch_step<n(), r()>(job, ctx); });
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
