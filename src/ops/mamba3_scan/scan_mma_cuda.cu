// One block walks 64 columns of one head of one sequence, chunk by chunk, as docs/SEMANTICS.md,
// section 5, derives it: in a chunk
//   O = (Q K^T with decays and weights) X + decayed Q h,    h' = decay h + (faded X)^T K
// are four matrix products in bf16 with fp32 sums; weights are applied to the scores in fp32. All
// threads make K, Q and X of a chunk, then multiply it; other blocks of a multiprocessor do the one
// while this one does the other.
#include <bit>
#include <cstdint>

#include "ops/mamba3_scan/scan_arguments_cuda.cuh"
#include "ops/mamba3_scan/scan_mma_cuda.h"
#include "ops/mamba3_scan/scan_mma_decays_cuda.cuh"
#include "ops/mamba3_scan/scan_mma_outputs_cuda.cuh"
#include "ops/mamba3_scan/scan_mma_rows_cuda.cuh"

namespace mamba3 {
namespace {

// Everything of a chunk that is no product; what takes long to come is asked for first. T: what x,
// z and y are.
template <class T, class S>
__device__ __forceinline__ void prepare_chunk(const MmaScanJob& job, const MmaPlace& at,
                                              const MmaChunk& chunk, const RowMaker<S>& rows,
                                              MmaMemory<S>& m) {
  request_rows(job, at, chunk, m);
  ColumnMaker<T, S> columns;
  columns.load(job, at, chunk);
  const Turner<S> turner(job, chunk);
  turner.sum(job, at, chunk, m);
  columns.put(job, at, chunk, m);
  if (at.warp == kWeighingWarp) {
    __pipeline_wait_prior(1);  // decays, of all but the rows of this chunk
    __syncwarp();
    weigh(job, at, chunk, m);
    __syncwarp();
    request_decays(job, at, chunk.begin + chunk.tokens, chunk.tokens, m);
  }
  __pipeline_commit();
  __pipeline_wait_prior(1);  // rows
  __syncthreads();
  keep_x<T>(job, at, chunk, m);
  rows.make(chunk, turner);
  __syncthreads();
  turner.advance(job, m);
}

// What the scores and the state's product bring, and the chunk's outputs.
template <class T, class S>
__device__ __forceinline__ void finish_chunk(const MmaScanJob& job, const MmaPlace& at, int begin,
                                             MmaMemory<S>& m, MmaReadOut<S>& o, MmaState<S>& h) {
  const OutputWriter<T, S> writer(job, at, begin);
  add_chunk<S>(at, m, o, h);
  writer.write(m, o);
}

template <class T, class S>
__global__ void __launch_bounds__(kMmaThreads, S::kBlocks)
    scan_mma_kernel(const __grid_constant__ MmaScanJob job) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& m = *reinterpret_cast<MmaMemory<S>*>(memory);
  const MmaPlace at(job);
  if (at.begin >= at.end) return;
  load_head(job, at, m);
  MmaState<S> h = {};
  for_each_of_state<S>(job, at, h, [](float& own, const float& from) { own = from; });
  __syncthreads();
  const RowMaker<S> rows(job, m);
  const int tokens = S::kRows >> job.rank_bits;
  if (at.warp == kWeighingWarp) request_decays(job, at, at.begin, tokens, m);
  __pipeline_commit();
  for (int begin = at.begin; begin < at.end; begin += tokens) {
    if ((begin - at.begin) % kStretchTokens == 0) {
      add_kept<S>(job, at, job.weights[at.head * job.tokens + begin].y, m, h);
    }
    const MmaChunk chunk(at, begin, tokens);
    prepare_chunk<T>(job, at, chunk, rows, m);
    make_scores(job, at, m);
    MmaReadOut<S> o;
    read_state<S>(job, at, m, h, o);
    __syncthreads();
    finish_chunk<T, S>(job, at, begin, m, o, h);
    __syncthreads();
  }
  for_each_of_state<S>(job, at, h, [](const float& own, float& to) { to = own; });
  store_end(job, at, m);
}

template <class T, class S>
void walk(const MmaScanJob& job, cudaStream_t stream) {
  const std::size_t bytes = MmaMemory<S>::bytes(job.sizes.rank);
  const auto kernel = scan_mma_kernel<T, S>;
  // Not allow_shared: what it leaves of a multiprocessor's memory caches what is read twice.
  raise_shared(reinterpret_cast<const void*>(kernel), bytes, "mamba3_scan's shared memory");
  const std::int64_t tiles = (job.sizes.head_dim + kBlockColumns - 1) / kBlockColumns;
  kernel<<<grid_blocks(job.sequences * job.sizes.heads * tiles), kMmaThreads, bytes, stream>>>(job);
  check_launch("mamba3_scan: chunks by mma");
}

template <class T, bool kOneRank>
void walk_state(const MmaScanJob& job, cudaStream_t stream) {
  if (job.sizes.state <= 64) return walk<T, MmaShape<64, kOneRank>>(job, stream);
  if (job.sizes.state <= 128) return walk<T, MmaShape<128, kOneRank>>(job, stream);
  walk<T, MmaShape<256, kOneRank>>(job, stream);
}

// With z, x and y of type T.
template <class T>
void scan(const MmaScanJob& job, const T* z, std::int64_t z_stride, cudaStream_t stream) {
  job.sizes.rank == 1 ? walk_state<T, true>(job, stream) : walk_state<T, false>(job, stream);
  if (!job.sizes.out_norm) return;
  norm_and_gate(ReadOuts<T>{job.sizes, job.params, job.read_out, z, z_stride,
                            static_cast<T*>(job.y), job.y_stride, job.tokens},
                stream);
}

}  // namespace

void mamba3_scan_mma_cuda(const Mamba3ScanArgs& args, Context& ctx) {
  MmaScanJob job{};
  take_arguments(args, job);
  if (job.tokens == 0 || job.sequences == 0) return;
  job.rank_bits = std::bit_width(static_cast<unsigned>(job.sizes.rank - 1));
  ArenaScope scope(ctx.workspace());
  take_mma_workspace(job, scope);
  const cudaStream_t stream = stream_of(ctx);
  prepare_mma_tokens(job, stream);
  if (job.y_bf16) {
    scan(job, job.z, job.zx_stride, stream);
  } else {
    scan(job, job.columns.z, job.columns.row_stride, stream);
  }
}

}  // namespace mamba3
