// One block walks one head of one sequence, or of a part of it (scan_parts_cuda.cuh,
// scan_shares_cuda.cuh), chunk by chunk. docs/SEMANTICS.md derives the merged form: in a chunk
//   O = (Q K^T with decays and weights) X + decayed Q h,    h' = decay h + (faded X)^T K
// are four matrix products in bf16 with fp32 sums; weights are applied to the scores in fp32.
//
// Four warpgroups hand chunks to each other, so that one chunk is rotated while another is
// multiplied: two make K, Q and the gates (scan_chunked_rotate_cuda.cuh), one has h in its
// accumulators and makes phases and weights two chunks ahead (scan_chunked_state_cuda.cuh), one
// makes O and y (scan_chunked_outputs_cuda.cuh) and X of several ranks a chunk ahead
// (scan_chunked_ranks_cuda.cuh). The last two do what is ahead while the tensor cores are at work.
#include <algorithm>
#include <cstdint>

#include "ops/mamba3_scan/scan_arguments_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_cuda.h"
#include "ops/mamba3_scan/scan_chunked_outputs_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_rotate_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_state_cuda.cuh"
#include "ops/mamba3_scan/scan_parts_cuda.cuh"
#include "ops/mamba3_scan/scan_shares_cuda.cuh"

// Code for other cards than Hopper has none of what the kernel calls.
#pragma nv_diag_suppress 177

namespace mamba3 {
namespace {

constexpr int kStartRegisters = 128;

// Of a thread of each warpgroup.
struct RoleRegisters {
  int outputs;
  int state;
  int rotating;
  // What the kernel begins with is divided anew.
  __host__ __device__ constexpr bool fit() const {
    return outputs + state + 2 * rotating <= 4 * kStartRegisters;
  }
};
// As many as keep everything in registers.
template <int kState, int kRank, bool kOutputs>
constexpr RoleRegisters kRegisters = !kOutputs       ? RoleRegisters{56, 200, 128}
                                     : kRank == 1    ? RoleRegisters{152, 168, 96}
                                     : kState == 128 ? RoleRegisters{128, 160, 112}
                                                     : RoleRegisters{136, 152, 112};

// Of the threads of a warpgroup.
template <int kCount>
__device__ __forceinline__ void set_registers() {
  if constexpr (kCount > kStartRegisters) {
    wgmma_take_registers<kCount>();
  } else {
    wgmma_give_registers<kCount>();
  }
}

template <int kState, int kRank, int kTurned, bool kOutputs>
__global__ void __launch_bounds__(kChunkThreads, 1)
    scan_chunked_kernel(const __grid_constant__ ChunkedScanJob job) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // no other card has these products
  using S = ChunkShape<kState, kRank, kTurned, kOutputs>;
  constexpr RoleRegisters kOwn = kRegisters<kState, kRank, kOutputs>;
  static_assert(kOwn.fit());
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& m = *reinterpret_cast<ChunkMemory<S>*>(memory);
  if (threadIdx.x == 0) {
    m.piece = take_piece(job);
    m.init_barriers();
  }
  __syncthreads();
  const ChunkPlace at(job, m.piece);
  if (at.begin >= at.end) return;
  load_head<S>(job, at, m);
  __syncthreads();
  if (threadIdx.x < kStateThread) {
    set_registers<kOwn.outputs>();
    run_outputs(job, at, m);
  } else if (threadIdx.x < kRotatingThread) {
    set_registers<kOwn.state>();
    StateCarrier<S>(job, at, m).run();
  } else {
    set_registers<kOwn.rotating>();
    ChunkRotator<S>(job, at, m).run();
  }
#endif
}

// Walks `count` pieces, for their outputs and states or for their states alone.
template <int kState, int kRank, int kTurned, bool kOutputs>
void launch(const ChunkedScanJob& job, std::int64_t count, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ChunkMemory<ChunkShape<kState, kRank, kTurned, kOutputs>>);
  static_assert(kBytes <= 227 * 1024);
  const auto kernel = scan_chunked_kernel<kState, kRank, kTurned, kOutputs>;
  allow_shared(reinterpret_cast<const void*>(kernel), kBytes, "mamba3_scan's shared memory");
  kernel<<<grid_blocks(count * job.piece_heads), kChunkThreads, kBytes, stream>>>(job);
  check_launch("mamba3_scan: chunks");
}

template <int kState, int kTurned, bool kOutputs>
void launch_rank(const ChunkedScanJob& job, std::int64_t count, cudaStream_t stream) {
  switch (job.sizes.rank) {
    case 1:
      return launch<kState, 1, kTurned, kOutputs>(job, count, stream);
    case 2:
      return launch<kState, 2, kTurned, kOutputs>(job, count, stream);
    default:
      return launch<kState, 4, kTurned, kOutputs>(job, count, stream);
  }
}

template <bool kOutputs>
void walk(const ChunkedScanJob& job, std::int64_t count, cudaStream_t stream) {
  if (job.sizes.state == 64) return launch_rank<64, 1, kOutputs>(job, count, stream);
  job.sizes.angles <= kWarpLanes ? launch_rank<128, 1, kOutputs>(job, count, stream)
                                 : launch_rank<128, 2, kOutputs>(job, count, stream);
}

// Long sequences that are too few to fill the card.
void walk_parts(ChunkedScanJob& job, const PartCounts& counts, ArenaScope& scope,
                cudaStream_t stream) {
  const ScanParts parts = cut_parts(job, counts, scope, stream);
  job.piece_heads = job.sizes.heads;
  job.pieces = parts.sections;
  walk<false>(job, job.sequences * counts.all_sections(), stream);
  join_parts(job, parts, stream);
  job.pieces = parts.parts;
  walk<true>(job, job.sequences * counts.parts, stream);
}

}  // namespace

void mamba3_scan_chunked_cuda(const Mamba3ScanArgs& args, Context& ctx) {
  ChunkedScanJob job{};
  take_arguments(args, job);
  if (job.tokens == 0 || job.sequences == 0) return;
  ArenaScope scope(ctx.workspace());
  take_chunked_workspace(job, scope);
  job.nothing = job.turning;
  const cudaStream_t stream = stream_of(ctx);
  if (job.z == nullptr) round_columns(job, scope, stream);
  prepare_chunked_tokens(job, stream);
  const std::int64_t multiprocessors = ctx.gpu()->info().multiprocessors;
  const PartCounts counts(job, multiprocessors);
  if (counts.parts > 1 && !args.one_walk) return walk_parts(job, counts, scope, stream);
  walk<true>(job, share_sequences(job, multiprocessors, scope, stream), stream);
}

}  // namespace mamba3
