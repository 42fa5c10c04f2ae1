// docs/SEMANTICS.md, section 9, in chunks of 64 rows. First one block for each head of a sequence
// walks forward and leaves the state at the start of every chunk; then one walks back with the
// gradient of the state in registers. Gradients of Q and K leave it in bf16, by heads or by chains
// of heads: what is summed over heads is then rounded as factors of a product are.
#include "ops/mamba3_scan_backward/scan_backward_mma_cuda.h"

#include <climits>

#include "ops/mamba3_scan/scan_arguments_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_chains_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_decays_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_norms_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_states_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_sums_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_walk_cuda.cuh"

namespace mamba3 {
namespace {

constexpr std::int64_t kFinishTokens = 64;  // of a piece whose rows of B and C a block finishes

// All memory of one call.
struct Workspace {
  Workspace(const Mamba3ScanBackwardArgs& args, Carver& carver)
      : finish_pieces(take_pieces(args, kFinishTokens, carver)),
        sequence_pieces(take_pieces(args, INT_MAX, carver)),
        norm_sums(carver.take<float>(finish_pieces.count * 2 * args.dims.state)) {
    const Mamba3Dims& dims = args.dims;
    const std::int64_t tokens = args.grad_y.shape[0];
    const auto sequences = static_cast<std::int64_t>(args.slots.size());
    const std::int64_t pairs = tokens * dims.heads;
    const std::int64_t shared = tokens * dims.rank * dims.groups * dims.state;
    const std::int64_t chunks = tokens * dims.rank / kBackwardRows + sequences;
    job.scan.in_b = carver.take<__half>(shared);
    job.scan.out_c = carver.take<__half>(shared);
    job.scan.turning = carver.take<double>(pairs);
    job.scan.log_decay = carver.take<double>(pairs);
    job.scan.weights = carver.take<float2>(pairs);
    job.scan.half_tanh = carver.take<double>(tokens * dims.angles);
    job.cos_sin = carver.take<__half2>(pairs * turn_stride(static_cast<int>(dims.angles)));
    job.chain = chain_heads(dims);
    job.chained = carver.take<std::uint8_t>(tokens);
    job.states = carver.take<__nv_bfloat16>(chunks * dims.heads * dims.state * dims.head_dim);
    job.decays =
        carver.take<uint4>(chunks * dims.heads * chunk_decays_bytes(static_cast<int>(dims.rank)) /
                           static_cast<std::int64_t>(sizeof(uint4)));
    job.grad_b = carver.take<__nv_bfloat16>(pairs * dims.rank * dims.state);
    job.grad_c = carver.take<__nv_bfloat16>(pairs * dims.rank * dims.state);
    job.grad_phase = carver.take<float>(pairs * dims.angles);
    job.grad_log_decay = carver.take<float>(pairs);
    job.grad_now = carver.take<float>(pairs);
    job.grad_carry = carver.take<float>(pairs);
    job.grad_dt = carver.take<float>(pairs);
    job.places = head_sum_places(dims);
    job.first_piece = sequence_pieces.first;
    job.head_sums = carver.take<float>(sequence_pieces.count * dims.heads * job.places.elements);
  }

  BackwardPieces finish_pieces;
  BackwardPieces sequence_pieces;
  float* norm_sums;  // [finish_pieces, 2, n]
  BackwardMmaJob job{};
};

void take_backward_arguments(const Mamba3ScanBackwardArgs& args, BackwardMmaJob& job) {
  take_inputs(args, args.grad_y.shape[0], "mamba3_scan_backward", job.scan);
  job.grad_y = static_cast<const __nv_bfloat16*>(args.grad_y.data);
  job.grad_y_stride = args.grad_y.stride[0];
  job.grads = gradient_columns(args.dims, args.grad_columns);
  job.zero_columns = static_cast<int>(args.grad_columns.zero_columns);
  job.grad_states = args.grad_states;
}

template <class S>
void walk(const BackwardMmaJob& job, cudaStream_t stream) {
  const TokenSizes& sizes = job.scan.sizes;
  const unsigned blocks = grid_blocks(job.scan.sequences * sizes.heads);
  chunk_decays_kernel<S><<<blocks, kDecaysThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: decays");
  const char* const memory = "mamba3_scan_backward's shared memory";
  const std::size_t states_bytes = StatesMemory<S>::bytes(sizes.angles);
  const auto states_kernel = backward_states_kernel<S>;
  raise_shared(reinterpret_cast<const void*>(states_kernel), states_bytes, memory);
  states_kernel<<<blocks, kStatesThreads, states_bytes, stream>>>(job);
  check_launch("mamba3_scan_backward: states");
  const std::size_t walk_bytes = BackwardMemory<S>::bytes(sizes.angles);
  const auto walk_kernel = backward_walk_kernel<S>;
  raise_shared(reinterpret_cast<const void*>(walk_kernel), walk_bytes, memory);
  walk_kernel<<<blocks, kBackwardThreads, walk_bytes, stream>>>(job);
  check_launch("mamba3_scan_backward: chunks by mma");
}

template <int kState>
void walk_rank(const BackwardMmaJob& job, cudaStream_t stream) {
  switch (job.scan.sizes.rank) {
    case 1:
      return walk<BackwardShape<kState, 1>>(job, stream);
    case 2:
      return walk<BackwardShape<kState, 2>>(job, stream);
    default:
      return walk<BackwardShape<kState, 4>>(job, stream);
  }
}

void prepare_tokens(const MmaScanJob& job, cudaStream_t stream) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows = 2 * job.tokens * sizes.rank * sizes.groups;
  normalise_rows_kernel<<<grid_blocks(rows, kPrepareWarps), kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: rows");
  const unsigned head_blocks = grid_blocks((job.tokens + kWarpLanes - 1) / kWarpLanes *
                                           ((sizes.heads + kPrepareWarps - 1) / kPrepareWarps));
  const unsigned angle_blocks = grid_blocks(job.tokens * sizes.angles, kPrepareThreads);
  token_numbers_kernel<<<head_blocks + angle_blocks, kPrepareThreads, 0, stream>>>(job,
                                                                                   head_blocks);
  check_launch("mamba3_scan_backward: numbers");
}

void finish_rows(const Mamba3ScanBackwardArgs& args, const Workspace& workspace,
                 cudaStream_t stream) {
  const BackwardMmaJob& job = workspace.job;
  const Mamba3Columns& in = job.scan.columns;
  const Mamba3Params& params = job.scan.params;
  MmaNormsJob norms{};
  norms.rows[0] = {in.in_b, in.row_stride, params.in_b_norm, job.grads.in_b};
  norms.rows[1] = {in.out_c, in.row_stride, params.out_c_norm, job.grads.out_c};
  norms.pieces = workspace.finish_pieces;
  norms.norm_sums = workspace.norm_sums;
  job.scan.sizes.state == 64 ? finish_head_rows<64>(job, norms, stream)
                             : finish_head_rows<128>(job, norms, stream);
  add_norm_sums(args, workspace.finish_pieces, workspace.norm_sums, stream);
}

// Fixed steps depend on no column: the gradients of their phases go nowhere.
BackwardMmaJob without_fixed_angles(BackwardMmaJob job) {
  if (job.scan.sizes.fixed_steps) job.scan.sizes.angles = 0;
  return job;
}

void finish_token_numbers(const BackwardMmaJob& job, cudaStream_t stream) {
  const auto add_phases = job.scan.sizes.angles <= 4 * kPhaseLanes ? add_head_phases_kernel<1>
                                                                   : add_head_phases_kernel<2>;
  add_phases<<<grid_blocks(job.scan.tokens, kTotalThreads / kPhaseLanes), kTotalThreads, 0,
               stream>>>(without_fixed_angles(job));
  check_launch("mamba3_scan_backward: phases of all heads");
  const int heads = job.scan.sizes.heads;
  const dim3 grid(grid_blocks(job.scan.tokens, kWarpLanes), grid_blocks(heads, kWarpLanes));
  finish_numbers_kernel<<<grid, kTotalThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: numbers of tokens");
  sum_dt_bias_kernel<<<grid_blocks(job.scan.sequences * heads), kTotalThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: sums of dt");
}

}  // namespace

std::size_t mamba3_scan_backward_mma_workspace_bytes(const Mamba3ScanBackwardArgs& args) {
  Carver measure(nullptr);
  const Workspace workspace(args, measure);
  return measure.bytes();
}

void mamba3_scan_backward_mma_cuda(const Mamba3ScanBackwardArgs& args, Context& ctx) {
  ArenaScope scope(ctx.workspace());
  Carver carver(scope.allocate<std::byte>(
      static_cast<std::int64_t>(mamba3_scan_backward_mma_workspace_bytes(args))));
  Workspace workspace(args, carver);
  BackwardMmaJob& job = workspace.job;
  take_backward_arguments(args, job);
  job.multiprocessors = ctx.gpu()->info().multiprocessors;
  const cudaStream_t stream = stream_of(ctx);
  cut_pieces(args, workspace.finish_pieces, stream);
  cut_pieces(args, workspace.sequence_pieces, stream);
  prepare_tokens(job.scan, stream);
  job.scan.sizes.state == 64 ? walk_rank<64>(job, stream) : walk_rank<128>(job, stream);
  finish_rows(args, workspace, stream);
  finish_token_numbers(job, stream);
  add_head_sums(args, workspace.sequence_pieces, job.head_sums, 0,
                static_cast<int>(args.dims.heads), stream);
}

}  // namespace mamba3
