#include "ops/mamba3_scan_backward/scan_backward_chunks_cuda.h"

#include <algorithm>

#include "core/arena.h"
#include "ops/mamba3_scan_backward/scan_backward_numbers_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_outputs_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_prepare_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_states_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_walk_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kMostRows = 32;  // of a chunk; half as many where they need too much memory
static_assert(kMostRows <= kWarpLanes && kMostRows / 2 >= kMostRank);
constexpr int kMostSharedBytes = 96 << 10;  // what every card from 8.0 on can give a block
// Of the workspace for what belongs to the heads in hand; a single head may need more.
constexpr std::int64_t kHeadsBytes = std::int64_t{512} << 20;
constexpr std::int64_t kMostTokens = std::int64_t{1} << 30;

template <class Memory>
int shared_bytes(const TokenSizes& sizes, int rows) {
  SharedParts parts(nullptr);
  const Memory measured(sizes, rows, parts);
  return parts.bytes();
}

int chunk_rows(const TokenSizes& sizes) {
  const int bytes = std::max(shared_bytes<ChunkWalkMemory>(sizes, kMostRows),
                             shared_bytes<ChunkOutputMemory>(sizes, kMostRows));
  return bytes <= kMostSharedBytes ? kMostRows : kMostRows / 2;
}

BackwardJobCuda make_job(const Mamba3ScanBackwardArgs& args) {
  BackwardJobCuda job{};
  job.sizes = token_sizes(args.dims);
  job.params = args.params;
  job.columns = args.columns;
  job.z = input_z(args.columns);
  job.x = input_x(args.columns);
  job.grad_y = input_rows(args.grad_y);
  job.out = gradient_columns(args.dims, args.grad_columns);
  job.states = args.states;
  job.grad_states = args.grad_states;
  job.places = head_sum_places(args.dims);
  job.cu_seqlens = args.cu_seqlens.data();
  job.slots = args.slots.data();
  job.tokens = args.grad_y.shape[0];
  job.sequences = static_cast<int>(args.slots.size());
  job.p_stride = whole_vectors(job.sizes.head_dim);
  const std::int64_t vectors = job.matrix() / 4;
  job.end_parts =
      static_cast<int>((vectors + kWalkThreads - 1) / kWalkThreads) * (kWalkThreads / kWarpLanes);
  job.by_rank = Divisor(job.sizes.rank);
  job.by_half = Divisor(job.sizes.state / 2);
  job.by_pairs = Divisor((job.sizes.state + 1) / 2);
  job.by_head_dim = Divisor(job.sizes.head_dim);
  job.by_p_stride = Divisor(job.p_stride);
  job.by_x_pitch = Divisor(odd_pitch(job.sizes.head_dim));
  check_input(job.tokens < kMostTokens, "mamba3_scan_backward: ", job.tokens,
              " tokens in one call; expected fewer than 2^30; lower the batch");
  return job;
}

// Memory for job.heads heads.
void take_heads(BackwardJobCuda& job, Carver& carver) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t tokens = job.heads * job.tokens;
  const std::int64_t chunks = std::int64_t{job.heads} * job.chunks.count;
  job.terms = carver.take<ChunkTerms>(tokens);
  job.rotations = carver.take<float>(tokens * 2 * sizes.angles);
  job.turns = carver.take<std::uint32_t>(chunks * sizes.angles);
  job.starts = carver.take<float>(chunks * job.matrix());
  job.ends = carver.take<float>(chunks * job.matrix());
  job.end_products = carver.take<float>(chunks * job.end_parts);
  job.grad_o = carver.take<float>(tokens * sizes.rank * job.p_stride);
  job.term_grads = carver.take<ChunkTermGradients>(tokens);
  job.grad_b = carver.take<float>(tokens * sizes.rank * sizes.state);
  job.grad_c = carver.take<float>(tokens * sizes.rank * sizes.state);
  job.grad_phase = carver.take<float>(tokens * sizes.angles);
  job.phases = carver.take<float>(chunks * sizes.angles);
  job.grad_carry = carver.take<float>(std::int64_t{job.heads} * job.sequences);
  job.head_sums = carver.take<float>(chunks * job.places.elements);
}

// All memory of one call.
struct BackwardWorkspace {
  HeadTotals totals;
  float* norm_sums;  // [chunks, 2, n]

  // Sets how many heads are taken at a time.
  BackwardWorkspace(const Mamba3ScanBackwardArgs& args, BackwardJobCuda& job, Carver& carver) {
    const TokenSizes& sizes = job.sizes;
    job.chunks = take_pieces(args, chunk_rows(sizes) / sizes.rank, carver);
    const std::int64_t shared = job.tokens * sizes.rank * sizes.groups * sizes.state;
    job.turn_rates = carver.take<double>(job.tokens * sizes.angles);
    job.normed_b = carver.take<float>(shared);
    job.normed_c = carver.take<float>(shared);
    totals = take_head_totals(args, carver);
    norm_sums = carver.take<float>(std::int64_t{job.chunks.count} * 2 * sizes.state);
    job.heads = 1;
    Carver one(nullptr);
    take_heads(job, one);
    const std::int64_t fit = kHeadsBytes / static_cast<std::int64_t>(one.bytes());
    const std::int64_t most = std::clamp<std::int64_t>(fit, 1, sizes.heads);
    const std::int64_t rounds = (sizes.heads + most - 1) / most;
    job.heads = static_cast<int>((sizes.heads + rounds - 1) / rounds);
    take_heads(job, carver);
  }
};

template <class Memory, class Kernel>
void launch_chunks(Kernel* kernel, const BackwardJobCuda& job, int rows, const char* name,
                   cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(shared_bytes<Memory>(job.sizes, rows));
  raise_shared(reinterpret_cast<const void*>(kernel), bytes, name);
  const dim3 grid(grid_blocks(job.chunks.count), static_cast<unsigned>(job.heads));
  kernel<<<grid, static_cast<unsigned>(rows / 4 * kAcross), bytes, stream>>>(job);
  check_launch(name);
}

template <int kRows>
void walk_heads(const BackwardJobCuda& job, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(job.heads);
  const std::int64_t vectors = job.matrix() / 4;
  const auto blocks = static_cast<int>((vectors + kWalkThreads - 1) / kWalkThreads);
  const dim3 walks(grid_blocks(std::int64_t{job.sequences} * blocks), heads);
  launch_chunks<ChunkStateMemory>(chunk_states_kernel<kRows>, job, kRows,
                                  "mamba3_scan_backward: chunks' states", stream);
  walk_states_kernel<<<walks, kWalkThreads, 0, stream>>>(job, blocks);
  check_launch("mamba3_scan_backward: states");
  launch_chunks<ChunkOutputMemory>(chunk_outputs_kernel<kRows>, job, kRows,
                                   "mamba3_scan_backward: read-outs", stream);
  walk_gradients_kernel<<<walks, kWalkThreads, 0, stream>>>(job, blocks);
  check_launch("mamba3_scan_backward: states' gradients");
  launch_chunks<ChunkWalkMemory>(chunk_walk_kernel<kRows>, job, kRows,
                                 "mamba3_scan_backward: chunks", stream);
  const dim3 firsts(grid_blocks(job.sequences), heads);
  before_first_kernel<<<firsts, kFirstThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: first tokens");
  const std::int64_t angles = std::int64_t{job.sequences} * job.heads * job.sizes.angles;
  if (angles > 0) {
    sum_phase_gradients_kernel<<<grid_blocks(angles, kTermThreads), kTermThreads, 0, stream>>>(job);
    check_launch("mamba3_scan_backward: phases' gradients");
  }
  const dim3 chunks(grid_blocks(job.chunks.count), heads);
  chunk_numbers_kernel<<<chunks, kTermThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: numbers");
}

}  // namespace

std::size_t scan_backward_chunks_workspace_bytes(const Mamba3ScanBackwardArgs& args) {
  BackwardJobCuda job = make_job(args);
  Carver measure(nullptr);
  const BackwardWorkspace workspace(args, job, measure);
  return measure.bytes();
}

void scan_backward_chunks_cuda(const Mamba3ScanBackwardArgs& args, Context& ctx) {
  BackwardJobCuda job = make_job(args);
  ArenaScope scope(ctx.workspace());
  const std::size_t bytes = scan_backward_chunks_workspace_bytes(args);
  Carver carver(scope.allocate<std::byte>(static_cast<std::int64_t>(bytes)));
  const BackwardWorkspace workspace(args, job, carver);
  const cudaStream_t stream = stream_of(ctx);
  cut_pieces(args, job.chunks, stream);
  prepare_tokens(job, stream);
  const int most_heads = job.heads;
  for (; job.first_head < job.sizes.heads; job.first_head += job.heads) {
    job.heads = std::min(most_heads, job.sizes.heads - job.first_head);
    prepare_heads(job, stream);
    const bool many_rows = chunk_rows(job.sizes) == kMostRows;
    many_rows ? walk_heads<kMostRows>(job, stream) : walk_heads<kMostRows / 2>(job, stream);
    add_head_partials(args, {job.first_head, job.heads, 1, job.grad_b, job.grad_c, job.grad_phase},
                      workspace.totals, stream);
    add_head_sums(args, job.chunks, job.head_sums, job.first_head, job.heads, stream);
  }
  finish_shared_columns(args, job.chunks, workspace.totals, workspace.norm_sums, stream);
  add_norm_sums(args, job.chunks, workspace.norm_sums, stream);
}

}  // namespace mamba3
