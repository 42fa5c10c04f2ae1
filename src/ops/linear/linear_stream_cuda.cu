// Every multiprocessor streams an equal share of the weights' rows through a ring in shared memory,
// which one warp fills. The other warps multiply on tensor cores, 16 rows of weights at a time by
// eight rows of x. A warp takes the same 128 of every 1024 numbers along k, so its part of x stays
// in registers; the warps' sums are added in one order. Nothing of this depends on the number of
// rows, so a row's bits do not either.
#include <algorithm>

#include "ops/launch.cuh"
#include "ops/linear/linear_stream_cuda.h"
#include "ops/linear/stream_operand_cuda.cuh"

namespace mamba3 {
namespace {

#if __CUDA_ARCH__ >= 900

// Before the stages in shared memory. kTiles: of eight rows of x each.
template <int kTiles>
struct alignas(128) Scratch {
  static constexpr int kBuffers = 2 / kTiles;
  float sums[kBuffers][kWarps][kTiles][kTileValues];
  double squares[2][kWarps];
  Ring ring;
};

// sum += 16 rows of weights by 8 rows of x, 16 numbers along k.
__device__ __forceinline__ void multiply(float (&sum)[4], std::uint32_t upper0,
                                         std::uint32_t lower0, std::uint32_t upper1,
                                         std::uint32_t lower1, std::uint32_t x0, std::uint32_t x1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(upper0), "r"(lower0), "r"(upper1), "r"(lower1), "r"(x0), "r"(x1));
}

// Where in a stage a lane's two rows of weights are. Rows that a tile has not repeat its last.
struct LaneRows {
  int upper, lower;
  __device__ explicit LaneRows(const StreamJob& job) {
    const int row = static_cast<int>(threadIdx.x) % kWarpLanes / 4;
    const int half = job.tile_rows / 2;
    const bool gated = job.gate_rows > 0;
    upper = min(row, (gated ? half : job.tile_rows) - 1) * kRowBytes;
    lower = (gated ? half + min(row, half - 1) : min(row + kTileRows / 2, job.tile_rows - 1)) *
            kRowBytes;
  }
};

// One stage of the ring: this warp's part of 16 rows.
template <int kTiles>
__device__ __forceinline__ void multiply_stage(const std::byte* stage, const LaneRows& at, int left,
                                               const Operand<kTiles>& x, float (&sums)[kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const std::byte* part = stage + warp * kWarpChunk * 2 + lane % 4 * 16;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    if (half * kHalf >= left) break;  // the same in all lanes; what is there was never copied
    const uint4 u = *reinterpret_cast<const uint4*>(part + at.upper + half * kHalf * 2);
    const uint4 l = *reinterpret_cast<const uint4*>(part + at.lower + half * kHalf * 2);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const std::uint32_t(&words)[4] = x.words[tile][half];
      multiply(sums[tile], u.x, l.x, u.y, l.y, words[0], words[1]);
      multiply(sums[tile], u.z, l.z, u.w, l.w, words[2], words[3]);
    }
  }
}

// Which value of a tile a thread finishes, and what was there before.
struct Result {
  int row, out;  // of x and y; of the tile
  bool mine;
  float before = 0;

  __device__ Result(const StreamJob& job, int begin, int outs, int values) {
    const int thread = static_cast<int>(threadIdx.x);
    row = thread / kTileValues * kColumns + thread % kColumns;
    out = thread % kTileValues / kColumns;
    mine = thread < values && row < job.rows && out < outs;
    if (mine && job.accumulate) before = static_cast<const float*>(job.y)[index(job, begin)];
  }
  __device__ std::int64_t index(const StreamJob& job, int begin) const {
    return row * job.y_stride + begin + out;
  }
};

template <int kTiles>
__device__ float add_warps(const float (&sums)[kWarps][kTiles][kTileValues], int value) {
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    sum += sums[warp][value / kTileValues][value % kTileValues];
  }
  return sum;
}

template <int kTiles>
__device__ void finish(const StreamJob& job, int begin, const Result& result,
                       const float (&sums)[kWarps][kTiles][kTileValues]) {
  if (!result.mine) return;
  const int value = static_cast<int>(threadIdx.x);
  float sum = add_warps<kTiles>(sums, value);
  if (job.gate_rows > 0) sum *= silu(add_warps<kTiles>(sums, value + kTileValues / 2));
  sum += result.before;
  const std::int64_t index = result.index(job, begin);
  if (job.y_is_bf16) {
    static_cast<__nv_bfloat16*>(job.y)[index] = __float2bfloat16_rn(sum);
  } else {
    static_cast<float*>(job.y)[index] = sum;
  }
}

template <int kTiles, int kChunks>
__device__ void multiply_weights(const StreamJob& job, const Share& share, const std::byte* stages,
                                 Scratch<kTiles>& scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  // All of x where registers hold it; else each stage's part is loaded while the one before it is
  // at work.
  constexpr int kHeld = kTiles * kChunks <= kMostHeld ? kChunks : 2;
  Operand<kTiles> x[kHeld];
  fetch_x(job, reinterpret_cast<__nv_bfloat16*>(&scratch.sums), scratch.squares, x);
  Ring& ring = scratch.ring;
  const LaneRows lane_rows(job);
  Position at(job);
  for (int tile = 0; tile < share.tiles; ++tile) {
    const int begin = share.begin(tile);
    const Result result(job, begin, share.outs(tile), kTiles * kTileValues);
    float sums[kTiles][4] = {};
#pragma unroll 1
    for (int first = 0; first < kChunks; first += kHeld) {
#pragma unroll
      for (int held = 0; held < kHeld; ++held) {
        const int chunk = first + held;
        if (chunk * kChunk < job.k) {
          barrier_wait(&ring.full[at.stage], at.parity);
          multiply_stage<kTiles>(stages + at.offset(job), lane_rows,
                                 job.k - chunk * kChunk - warp * kWarpChunk, x[held], sums);
          arrive_warp(&ring.empty[at.stage], lane);
          at.next();
        }
        if (kHeld < kChunks) x[held].load(job, (chunk + kHeld) % kChunks);
      }
    }
    // Of two buffers: whoever fills one has passed the barrier behind which all had read it.
    auto& parts = scratch.sums[tile % Scratch<kTiles>::kBuffers];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float* upper = &parts[warp][t][lane * 2];
      *reinterpret_cast<float2*>(upper) = make_float2(sums[t][0], sums[t][1]);
      *reinterpret_cast<float2*>(upper + kTileValues / 2) = make_float2(sums[t][2], sums[t][3]);
    }
    wait_for_warps();
    finish<kTiles>(job, begin, result, parts);
    if (Scratch<kTiles>::kBuffers == 1) wait_for_warps();
  }
}

#endif

// Two blocks fit on a multiprocessor.
template <int kTiles, int kChunks>
__global__ void __launch_bounds__(kBlockThreads, 2) stream_kernel(const StreamJob job) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte memory[];
  auto& scratch = *reinterpret_cast<Scratch<kTiles>*>(memory);
  std::byte* const stages = memory + sizeof(scratch);
  if (threadIdx.x == 0) {
    for (int i = 0; i < job.stages; ++i) {
      barrier_init(&scratch.ring.full[i], 1);
      barrier_init(&scratch.ring.empty[i], kWarpArrivals * kWarps);
    }
    barrier_init_done();
  }
  __syncthreads();
  const Share share(job);
  if (threadIdx.x >= kThreads) return copy_weights(job, share, stages, scratch.ring);
  multiply_weights<kTiles, kChunks>(job, share, stages, scratch);
#endif
}

int blocks_of(int outs, const Context& ctx) {
  return std::min(outs, ctx.gpu()->info().multiprocessors);
}

// The ring of a block: all that it reads where that is little, and fetched before the kernel ahead
// has ended; else so much that it fits beside such a ring of another kernel's block.
void plan_ring(StreamJob& job, const Context& ctx) {
  constexpr int kFewRows = 12, kFewStages = 3;
  const int blocks = blocks_of(job.outs, ctx);
  const int each = job.gate_rows > 0 ? 2 : 1;  // rows of weights for an output
  const int outs = (job.outs + blocks - 1) / blocks;
  const int chunks = (job.k + kChunk - 1) / kChunk;
  const auto tiles_of = [&](int rows) { return (outs * each + rows - 1) / rows; };
  const bool whole = tiles_of(kTileRows) * chunks <= kMostStages;
  const int tiles = tiles_of(whole ? kTileRows : kFewRows);
  job.stages = whole ? tiles * chunks : kFewStages;
  job.tile_rows = (outs + tiles - 1) / tiles * each;
}

std::size_t shared_bytes(const StreamJob& job) {
  // Of Scratch, which only code for the device knows, for one tile of x or for two.
  constexpr std::size_t kScratch = 2 * sizeof(float) * kWarps * kTileValues +
                                   sizeof(double) * 2 * kWarps +
                                   2 * kMostStages * sizeof(std::uint64_t);
  return (kScratch + 127) / 128 * 128 +
         static_cast<std::size_t>(job.stages * job.tile_rows * kRowBytes);
}

template <int kTiles, int kChunks>
void launch(const StreamJob& job, Context& ctx) {
  const auto kernel = stream_kernel<kTiles, kChunks>;
  const std::size_t bytes = shared_bytes(job);
  allow_shared(reinterpret_cast<const void*>(kernel), bytes, "linear's shared memory");
  const int blocks = blocks_of(job.outs, ctx);
  launch_dependent("linear: streaming", kernel,
                   {static_cast<unsigned>(blocks), kBlockThreads, bytes}, ctx, job);
}

// Whether x goes through shared memory, rounded on the way: fp32 of few rows. Only there is a norm
// part of the kernel.
bool is_staged(const ConstMatrix& x) {
  return !x.is_bf16() && x.shape[0] <= kColumns && x.shape[0] * x.shape[1] <= kMostStaged;
}

bool on_16_bytes(const void* p, std::int64_t stride_bytes) {
  return (reinterpret_cast<std::uintptr_t>(p) | static_cast<std::uintptr_t>(stride_bytes)) % 16 ==
         0;
}

}  // namespace

bool linear_stream_takes(const FusedLinearArgs& args, const Context& ctx) {
  const std::int64_t rows = args.x.shape[0], k = args.x.shape[1];
  const std::int64_t x_stride = rows > 1 ? args.x.stride[0] : 0;
  if (args.norm_weight != nullptr && !is_staged(args.x)) return false;
  if (args.rest.data != nullptr) return false;
  return ctx.gpu()->info().compute_capability == 90 && args.path != LinearPath::kGemm &&
         rows <= kMostRows && args.compute == Compute::kBf16 && args.w.dtype == DType::kBf16 &&
         k > 0 && k % kHalf == 0 && k <= kMostK && args.w.shape[0] <= (1 << 30) &&
         on_16_bytes(args.x.data, x_stride * dtype_bytes(args.x.dtype)) &&
         on_16_bytes(args.w.data, 0) && on_16_bytes(args.norm_weight, 0);
}

void linear_stream_cuda(const FusedLinearArgs& args, Context& ctx) {
  StreamJob job{};
  job.w = reinterpret_cast<const __nv_bfloat16*>(args.w.data);
  job.gate_rows = args.swiglu ? args.y.shape[1] : 0;
  job.outs = static_cast<int>(args.y.shape[1]);
  job.k = static_cast<int>(args.x.shape[1]);
  job.x = args.x.data;
  job.x_stride = args.x.stride[0];
  job.x_is_bf16 = args.x.is_bf16();
  job.staged = is_staged(args.x);
  job.norm_weight = args.norm_weight;
  job.eps = double{args.norm_eps};
  job.y = args.y.data;
  job.y_stride = args.y.stride[0];
  job.y_is_bf16 = args.y.is_bf16();
  job.accumulate = args.accumulate;
  job.rows = static_cast<int>(args.x.shape[0]);
  plan_ring(job, ctx);
  const bool few = job.rows <= kColumns, near = job.k <= kMostK / 2;
  constexpr int kNear = kMostK / 2 / kChunk, kFar = kMostK / kChunk;
  if (few) return near ? launch<1, kNear>(job, ctx) : launch<1, kFar>(job, ctx);
  near ? launch<2, kNear>(job, ctx) : launch<2, kFar>(job, ctx);
}

}  // namespace mamba3
