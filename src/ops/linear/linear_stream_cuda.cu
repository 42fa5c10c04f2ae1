// Every multiprocessor streams an equal share of the weights' rows through a ring in shared memory.
// One warp asks for them, with bulk copies that start before the kernel ahead has ended: weights
// depend on nobody. The other warps multiply on tensor cores, 16 rows of weights at a time by
// eight rows of x. A warp takes the same 64 of every 512 numbers along k, so its part of x stays in
// registers; the warps' sums are added in one order. Nothing of this depends on the number of rows,
// so a row's bits do not either.
#include <cuda_bf16.h>

#include <algorithm>

#include "device/bulk_copy.cuh"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/linear/linear_stream_cuda.h"

namespace mamba3 {
namespace {

constexpr int kWarps = 8;  // that multiply
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kBlockThreads = kThreads + kWarpLanes;  // and one warp that copies
constexpr int kTileRows = 16;                         // of weights, in one mma
constexpr int kColumns = 8;                           // rows of x, in one mma
constexpr int kMostRows = 16;
constexpr int kChunk = 512;  // numbers along k in one stage of the ring
constexpr int kWarpChunk = kChunk / kWarps;
constexpr int kHalf = 32;  // numbers along k that a warp loads at once, 8 a lane
constexpr int kMostK = 4096;
// 64 bytes more than a row has, so that eight lanes find their 16 bytes in different banks.
constexpr int kRowBytes = kChunk * 2 + 64;
constexpr int kStageBytes = kTileRows * kRowBytes;
// Two blocks fit on a multiprocessor: the next kernel's fetches while this one's works.
constexpr int kStages = 5;
constexpr int kTileValues = kTileRows * kColumns;

struct StreamJob {
  const __nv_bfloat16* w;
  std::int64_t gate_rows;  // from a row to the row of its gate; 0: no SwiGLU
  int outs, k;
  const void* x;
  std::int64_t x_stride;
  bool x_is_bf16;
  const float* norm_weight;  // or null
  double eps;
  void* y;
  std::int64_t y_stride;
  bool y_is_bf16, accumulate;
  int rows;
};

#if __CUDA_ARCH__ >= 900

struct Ring {
  Barrier full[kStages], empty[kStages];
};

// Behind the stages in shared memory. kTiles: of eight rows of x each.
template <int kTiles>
struct Scratch {
  float sums[2][kWarps][kTiles][kTileValues];
  double squares[kMostRows][kWarps];
  Ring ring;
};

struct Position {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// This block's outputs, in tiles of nearly equal size.
struct Share {
  int first, count, tiles;
  __device__ explicit Share(const StreamJob& job) {
    const std::int64_t outs = job.outs;
    first = static_cast<int>(outs * blockIdx.x / gridDim.x);
    count = static_cast<int>(outs * (blockIdx.x + 1) / gridDim.x) - first;
    const int most = job.gate_rows > 0 ? kTileRows / 2 : kTileRows;
    tiles = (count + most - 1) / most;
  }
  __device__ int begin(int tile) const {
    return first + static_cast<int>(std::int64_t{count} * tile / tiles);
  }
};

// The copying warp: a lane a row of the tile. With SwiGLU the gates are the lower eight rows.
__device__ void copy_weights(const StreamJob& job, const Share& share, std::byte* stages,
                             Ring& ring) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const bool gated = job.gate_rows > 0;
  const std::uint64_t policy = read_once_policy();
  Position at;
  int asked = 0;
  for (int tile = 0; tile < share.tiles; ++tile) {
    const int begin = share.begin(tile);
    const int outs = share.begin(tile + 1) - begin;
    const int out = gated ? lane % (kTileRows / 2) : lane;
    const bool mine = lane < kTileRows && out < outs;
    const std::int64_t row = begin + out + (gated && lane >= kTileRows / 2 ? job.gate_rows : 0);
    for (int k = 0; k < job.k; k += kChunk, ++asked) {
      const std::uint32_t bytes = static_cast<std::uint32_t>(min(kChunk, job.k - k)) * 2;
      if (asked >= kStages) barrier_wait(&ring.empty[at.stage], at.parity ^ 1);
      if (lane == 0) {
        barrier_arrive_expecting(&ring.full[at.stage], bytes * (gated ? 2 * outs : outs));
      }
      __syncwarp();
      if (mine) {
        bulk_copy(stages + at.stage * kStageBytes + lane * kRowBytes, job.w + row * job.k + k,
                  bytes, &ring.full[at.stage], policy);
      }
      at.next();
      if (asked == kStages - 1) start_successor();
    }
  }
  start_successor();  // where the ring was not filled
}

// The eight numbers of x [row] from `at` on, in fp32.
__device__ __forceinline__ void load_x(const StreamJob& job, std::int64_t row, int at,
                                       float (&out)[8]) {
  const float* from = static_cast<const float*>(job.x) + row * job.x_stride + at;
  load_vector<4>(from, reinterpret_cast<float(&)[4]>(out[0]));
  load_vector<4>(from + 4, reinterpret_cast<float(&)[4]>(out[4]));
}

// Root mean squares as rms_norm takes them, in the same order. Every thread gets that of row
// tile * 8 + lane / 4, inverted.
template <int kTiles>
__device__ void inverse_rms(const StreamJob& job, double (&squares)[kMostRows][kWarps],
                            float (&out)[kTiles]) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 4
  for (int row = 0; row < job.rows; ++row) {
    const float* x = static_cast<const float*>(job.x) + row * job.x_stride;
    double sum = 0;
    for (int i = thread * 4; i < job.k; i += kThreads * 4) {
      float values[4];
      load_vector<4>(x + i, values);
      for (int v = 0; v < 4; ++v) sum = fma(double{values[v]}, double{values[v]}, sum);
    }
    sum = warp_sum(sum);
    if (thread % kWarpLanes == 0) squares[row][thread / kWarpLanes] = sum;
  }
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int row = min(tile * kColumns + thread % kWarpLanes / 4, job.rows - 1);
    double sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += squares[row][i];
    out[tile] = static_cast<float>(1.0 / sqrt(sum / static_cast<double>(job.k) + job.eps));
  }
}

// What a lane multiplies by: of row lane / 4 of each tile of x, eight numbers of each 32 that its
// warp takes, as they lie in memory. The mma's order along k is permuted by that, alike for x and
// for the weights.
template <int kTiles, int kChunks>
struct Operand {
  std::uint32_t words[kTiles][kChunks][2][4];

  __device__ void load(const StreamJob& job, const float (&factor)[kTiles]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
    const int first = static_cast<int>(threadIdx.x) / kWarpLanes * kWarpChunk + lane % 4 * 8;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = tile * kColumns + lane / 4;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = c * kChunk + first + half * kHalf;
          load_words(job, row, at, factor[tile], words[tile][c][half]);
        }
      }
    }
  }

  __device__ static void load_words(const StreamJob& job, int row, int at, float factor,
                                    std::uint32_t (&to)[4]) {
    for (int i = 0; i < 4; ++i) to[i] = 0;
    if (row >= job.rows || at >= job.k) return;
    if (job.x_is_bf16) {
      const auto* from = static_cast<const __nv_bfloat16*>(job.x) + row * job.x_stride + at;
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
      return;
    }
    float values[8];
    load_x(job, row, at, values);
    if (job.norm_weight != nullptr) {
      float weight[8];
      load_vector<4>(job.norm_weight + at, reinterpret_cast<float(&)[4]>(weight[0]));
      load_vector<4>(job.norm_weight + at + 4, reinterpret_cast<float(&)[4]>(weight[4]));
      for (int i = 0; i < 8; ++i) values[i] = weight[i] * (values[i] * factor);
    }
    for (int i = 0; i < 4; ++i) to[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
  }
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

// One stage of the ring: this warp's part of 16 rows.
template <int kTiles, int kChunks>
__device__ __forceinline__ void multiply_stage(const std::byte* stage, int left,
                                               const Operand<kTiles, kChunks>& x, int c,
                                               float (&sums)[kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const std::byte* upper = stage + lane / 4 * kRowBytes + warp * kWarpChunk * 2 + lane % 4 * 16;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half * kHalf >= left) break;  // the same in all lanes; what is there was never copied
    const uint4 u = *reinterpret_cast<const uint4*>(upper + half * kHalf * 2);
    const uint4 l =
        *reinterpret_cast<const uint4*>(upper + half * kHalf * 2 + kTileRows / 2 * kRowBytes);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const std::uint32_t(&words)[4] = x.words[tile][c][half];
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
  float factor[kTiles] = {};
  if (job.norm_weight != nullptr) inverse_rms<kTiles>(job, scratch.squares, factor);
  Operand<kTiles, kChunks> x;
  x.load(job, factor);
  Ring& ring = scratch.ring;
  Position at;
  for (int tile = 0; tile < share.tiles; ++tile) {
    const int begin = share.begin(tile);
    const Result result(job, begin, share.begin(tile + 1) - begin, kTiles * kTileValues);
    float sums[kTiles][4] = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (c * kChunk >= job.k) break;
      barrier_wait(&ring.full[at.stage], at.parity);
      multiply_stage<kTiles, kChunks>(stages + at.stage * kStageBytes,
                                      job.k - c * kChunk - warp * kWarpChunk, x, c, sums);
      __syncwarp();
      if (lane == 0) barrier_arrive(&ring.empty[at.stage]);
      at.next();
    }
    // Two buffers: whoever fills one has passed the barrier behind which all had read it.
    auto& parts = scratch.sums[tile % 2];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float* upper = &parts[warp][t][lane * 2];
      *reinterpret_cast<float2*>(upper) = make_float2(sums[t][0], sums[t][1]);
      *reinterpret_cast<float2*>(upper + kTileValues / 2) = make_float2(sums[t][2], sums[t][3]);
    }
    asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
    finish<kTiles>(job, begin, result, parts);
  }
}

// While the kernel ahead still runs: the norm's weights come near.
__device__ void prefetch_norm(const StreamJob& job) {
  constexpr int kLine = 32;  // floats
  const int i = static_cast<int>(threadIdx.x) * kLine;
  if (job.norm_weight == nullptr || i >= job.k) return;
  asm volatile("prefetch.global.L2 [%0];" ::"l"(job.norm_weight + i));
}

#endif

// Registers for two blocks on a multiprocessor, but for the widest.
template <int kTiles, int kChunks>
__global__ void __launch_bounds__(kBlockThreads, kTiles* kChunks <= 8 ? 2 : 1)
    stream_kernel(const StreamJob job) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte stages[];
  auto& scratch = *reinterpret_cast<Scratch<kTiles>*>(stages + kStages * kStageBytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&scratch.ring.full[i], 1);
      barrier_init(&scratch.ring.empty[i], kWarps);
    }
    barrier_init_done();
  }
  __syncthreads();
  const Share share(job);
  if (threadIdx.x >= kThreads) return copy_weights(job, share, stages, scratch.ring);
  prefetch_norm(job);
  wait_for_predecessor();
  multiply_weights<kTiles, kChunks>(job, share, stages, scratch);
#endif
}

constexpr std::size_t shared_bytes(int tiles) {
  // sizeof(Scratch<tiles>), which only code for the device knows.
  return kStages * kStageBytes + 2 * sizeof(float) * kWarps * tiles * kTileValues +
         sizeof(double) * kMostRows * kWarps + 2 * kStages * sizeof(std::uint64_t);
}

template <int kTiles, int kChunks>
void launch(const StreamJob& job, Context& ctx) {
  const auto kernel = stream_kernel<kTiles, kChunks>;
  const std::size_t bytes = shared_bytes(kTiles);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "linear's shared memory");
  const int blocks = std::min(job.outs, ctx.gpu()->info().multiprocessors);
  launch_dependent("linear: streaming", kernel,
                   {static_cast<unsigned>(blocks), kBlockThreads, bytes}, ctx, job);
}

bool on_16_bytes(const void* p, std::int64_t stride_bytes) {
  return (reinterpret_cast<std::uintptr_t>(p) | static_cast<std::uintptr_t>(stride_bytes)) % 16 ==
         0;
}

}  // namespace

bool linear_stream_takes(const FusedLinearArgs& args, const Context& ctx) {
  const std::int64_t rows = args.x.shape[0], k = args.x.shape[1];
  const std::int64_t x_stride = rows > 1 ? args.x.stride[0] : 0;
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
  job.norm_weight = args.norm_weight;
  job.eps = double{args.norm_eps};
  job.y = args.y.data;
  job.y_stride = args.y.stride[0];
  job.y_is_bf16 = args.y.is_bf16();
  job.accumulate = args.accumulate;
  job.rows = static_cast<int>(args.x.shape[0]);
  const bool few = job.rows <= kColumns, near = job.k <= kMostK / 2;
  if (few) return near ? launch<1, 4>(job, ctx) : launch<1, 8>(job, ctx);
  near ? launch<2, 4>(job, ctx) : launch<2, 8>(job, ctx);
}

}  // namespace mamba3
