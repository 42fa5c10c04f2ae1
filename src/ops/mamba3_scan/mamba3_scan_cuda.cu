// A block walks one sequence through 32 columns of one head, with that part of the state in
// registers: a lane has a column, a warp a slice of the rows. Tokens come in tiles. What prepares a
// tile (phases, rotation) and what follows the read-out (sums over the slices, gate) is spread over
// its tokens; only the update of the state goes token by token, in the order of mamba3_step.
#include <cstdint>

#include "ops/cuda_ops.h"
#include "ops/mamba3_scan/scan_chunked_cuda.h"
#include "ops/mamba3_scan/scan_mma_cuda.h"
#include "ops/mamba3_scan/scan_tile_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kBlocks = 2;  // at once on a multiprocessor
constexpr int kMostTileTokens = 16;
constexpr int kMostSharedBytes = 96 << 10;  // what every card from 8.0 on can give a block

// h += x k
template <int kRows>
__device__ __forceinline__ void add_outer(float x, const float* k, float (&h)[kRows]) {
#pragma unroll
  for (int i = 0; i < kRows; i += 4) {
    float part[4];
    load_vector<4>(k + i, part);
    for (int j = 0; j < 4; ++j) h[i + j] = fmaf(x, part[j], h[i + j]);
  }
}

// q h over the rows that exist.
template <int kRows, bool kFull>
__device__ __forceinline__ float read_rows(const float* q, const float (&h)[kRows], int rows) {
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kRows; i += 4) {
    float part[4];
    load_vector<4>(q + i, part);
    for (int j = 0; j < 4; ++j) {
      if (kFull || i + j < rows) sums[j] = fmaf(part[j], h[i + j], sums[j]);
    }
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The tile's tokens, one after the other, through one thread's part of the state. kRank 0: any.
template <int kRows, int kRank, bool kFull>
__device__ __forceinline__ void walk_tile(const TokenSizes& sizes, const Place& at,
                                          const Tile& tile, int tokens, float (&h)[kRows]) {
  const int rank = kRank > 0 ? kRank : sizes.rank;
  const int rows = sizes.state - at.warp * kRows;
  if (rows <= 0) return;
  const float* k = tile.k + at.warp * kRows;
  const float* q = tile.q + at.warp * kRows;
  const float* mimo_x = tile.mimo_x + at.lane;
  const float* x = tile.x + at.lane;
  float* partial = tile.partial + at.warp * kColumns + at.lane;
  for (int t = 0; t < tokens; ++t, x += kColumns) {
    const TokenWeights& weights = tile.weights[t];
#pragma unroll
    for (int i = 0; i < kRows; ++i) h[i] *= weights.decay;
    for (int r = 0; r < rank; ++r, k += tile.pitch) {
      add_outer<kRows>(weights.carry * (x[0] * mimo_x[r * kColumns]), k, h);
    }
    // The next token's previous K is this token's K: k stays here.
    for (int r = 0; r < rank; ++r) {
      const float now = weights.now * (x[kColumns] * mimo_x[r * kColumns]);
      add_outer<kRows>(now, k + r * tile.pitch, h);
    }
    for (int r = 0; r < rank; ++r, q += tile.pitch, partial += kSlices * kColumns) {
      *partial = read_rows<kRows, kFull>(q, h, rows);
    }
  }
}

// y, or the read-outs where they are to be normalised: that needs all columns of the head.
__device__ void write_tile(const ScanJob& job, const Place& at, const Tile& tile,
                           std::int64_t begin, int tokens, int slices) {
  if (!at.inside) return;
  const TokenSizes& sizes = job.sizes;
  const HeadGate gate = head_gate(sizes, job.params, at.head);
  const std::int64_t inner = std::int64_t{sizes.heads} * sizes.head_dim;
  for (int t = at.warp; t < tokens; t += kScanWarps) {
    const float x = tile.x[(1 + t) * kColumns + at.lane];
    const float z = tile.z[t * kColumns + at.lane];
    float y = 0;
    for (int r = 0; r < sizes.rank; ++r) {
      const std::int64_t row = std::int64_t{t} * sizes.rank + r;
      const float* part = tile.partial + row * kSlices * kColumns + at.lane;
      float o = part[0];
      for (int slice = 1; slice < slices; ++slice) o += part[slice * kColumns];
      o = add_skip(gate, r, at.column, x, o);
      if (sizes.out_norm) {
        job.read_out[(begin * sizes.rank + row) * inner + at.own_column(job)] = o;
      } else {
        const float term = gated(gate, r, at.column, z, o);
        y = r == 0 ? term : y + term;
      }
    }
    if (!sizes.out_norm) job.y[(begin + t) * job.y_stride + at.own_column(job)] = y;
  }
}

template <int kRows, int kRank, bool kFull>
__global__ void __launch_bounds__(kScanThreads, kBlocks)
    scan_kernel(const ScanJob job, const int tile_tokens) {
  extern __shared__ float4 memory[];
  const TokenSizes& sizes = job.sizes;
  const Place at(job);
  std::int64_t begin = job.cu_seqlens[at.sequence];
  const std::int64_t end = job.cu_seqlens[at.sequence + 1];
  if (begin >= end) return;
  SharedParts parts(reinterpret_cast<float*>(memory));
  const Tile tile(sizes, kRows, tile_tokens, parts);
  load_start(job, at, tile);
  const int rows = at.inside ? sizes.state - at.warp * kRows : 0;
  float* ssm = at.ssm(job) + at.warp * kRows * sizes.head_dim;
  float h[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) h[i] = i < rows ? ssm[i * sizes.head_dim] : 0.0f;

  std::uint32_t* turns = tile.turns;
  std::uint32_t* next_turns = tile.turns + sizes.angles;
  const int slices = (sizes.state + kRows - 1) / kRows;
  for (; begin < end; begin += tile_tokens) {
    const int tokens = static_cast<int>(min(end - begin, std::int64_t{tile_tokens}));
    request_tile(job, at, tile, begin, tokens);
    move_phases(job, at, tile, begin, tokens);
    __pipeline_wait_prior(0);
    __syncthreads();
    turn(sizes, tile, tokens, turns, next_turns);
    __syncthreads();
    rotate(job, at, tile, tokens);
    __syncthreads();
    walk_tile<kRows, kRank, kFull>(sizes, at, tile, tokens, h);
    __syncthreads();
    write_tile(job, at, tile, begin, tokens, slices);
    carry_over(sizes, at, tile, tokens);
    __syncthreads();
    std::uint32_t* const before = turns;
    turns = next_turns;
    next_turns = before;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i < rows) ssm[i * sizes.head_dim] = h[i];
  }
  store_end(job, at, tile, turns);
}

int shared_bytes(const TokenSizes& sizes, int rows, int tokens) {
  SharedParts parts(nullptr);
  const Tile measured(sizes, rows, tokens, parts);
  return parts.bytes();
}

template <int kRows, int kRank, bool kFull>
void launch(const ScanJob& job, cudaStream_t stream) {
  const TokenSizes& sizes = job.sizes;
  int tokens = kMostTileTokens;
  while (tokens > 1 && shared_bytes(sizes, kRows, tokens) > kMostSharedBytes) tokens /= 2;
  const auto bytes = static_cast<std::size_t>(shared_bytes(sizes, kRows, tokens));
  const auto kernel = scan_kernel<kRows, kRank, kFull>;
  raise_shared(reinterpret_cast<const void*>(kernel), bytes, "mamba3_scan's shared memory");
  const std::int64_t chunks = (sizes.head_dim + kColumns - 1) / kColumns;
  const unsigned blocks = grid_blocks(job.sequences * sizes.heads * chunks);
  kernel<<<blocks, kScanThreads, bytes, stream>>>(job, tokens);
  check_launch("mamba3_scan");
}

template <int kRows>
void launch_rows(const ScanJob& job, cudaStream_t stream) {
  const bool full = job.sizes.state % kRows == 0;
  if (job.sizes.rank == 1) {
    return full ? launch<kRows, 1, true>(job, stream) : launch<kRows, 1, false>(job, stream);
  }
  full ? launch<kRows, 0, true>(job, stream) : launch<kRows, 0, false>(job, stream);
}

// The fewest rows a thread that the slices make whole.
void launch_scan(const ScanJob& job, cudaStream_t stream) {
  const int rows = (job.sizes.state + kSlices - 1) / kSlices;
  if (rows <= 4) return launch_rows<4>(job, stream);
  if (rows <= 8) return launch_rows<8>(job, stream);
  if (rows <= 16) return launch_rows<16>(job, stream);
  launch_rows<32>(job, stream);
}

}  // namespace

void mamba3_scan_cuda(const Mamba3ScanArgs& args, Context& ctx) {
  const KernelPath path =
      mamba3_scan_path(args.dims, ctx.gpu()->info().compute_capability, args.bf16_products);
  if (path.tuned && !args.general) return mamba3_scan_chunked_cuda(args, ctx);
  if (path.mma || path.tuned) return mamba3_scan_mma_cuda(args, ctx);
  ScanJob job{};
  job.sizes = token_sizes(args.dims);
  job.params = args.params;
  job.columns = args.columns;
  job.states = args.states;
  job.cu_seqlens = args.cu_seqlens.data();
  job.slots = args.slots.data();
  job.tokens = args.y.shape[0];
  job.sequences = static_cast<std::int64_t>(args.slots.size());
  job.y = args.y.floats();
  job.y_stride = args.y.stride[0];
  if (job.tokens == 0 || job.sequences == 0) return;
  ArenaScope scope(ctx.workspace());
  take_scan_workspace(job, scope);
  const cudaStream_t stream = stream_of(ctx);
  prepare_scan_tokens(job, stream);
  launch_scan(job, stream);
  if (!job.sizes.out_norm) return;
  norm_and_gate(ReadOuts<float>{job.sizes, job.params, job.read_out, job.columns.z,
                                job.columns.row_stride, job.y, job.y_stride, job.tokens},
                stream);
}

}  // namespace mamba3
