// Products of a few dozen rows, which take as long as their weights take to come. A block holds all
// rows of x by a strip of weights. Two warps copy into rings in shared memory: one the weights,
// from before the kernel ahead has ended until its ring is full, one x. A warpgroup multiplies.
//
// Every block reads x. Where outputs are so few that strips would be thin, blocks of a cluster take
// parts of k instead, and each adds up some of the strip's outputs, in the order of the parts.
// Nothing of this depends on the number of rows, so a row's bits do not either.
#include <cuda_bf16.h>

#include <algorithm>

#include "device/cluster.cuh"
#include "device/dependent_launch.cuh"
#include "device/fast_math.cuh"
#include "device/kernel_helpers.cuh"
#include "device/ring_position.cuh"
#include "device/tensor_copy.cuh"
#include "device/wgmma_widths.cuh"
#include "ops/launch.cuh"
#include "ops/linear/linear_batch_cuda.h"
#include "ops/tensor_map.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kFewestRows = 33, kMostRows = 64;  // for which it is faster than cuBLASLt
constexpr std::int64_t kFewestWeights = std::int64_t{1} << 22;
constexpr int kWorkers = 128;  // the warpgroup that multiplies
constexpr int kThreads = kWorkers + 2 * kWarpLanes;
constexpr int kRows = 64;             // of x, room for
constexpr int kDepth = kTileColumns;  // along k, in a stage
constexpr int kXBytes = kRows * kTileRowBytes, kXStages = 6;
constexpr int kRingBytes = 208 * 1024;  // of both rings, and of parts of sums

struct BatchJob {
  int rows, outs, steps;  // steps along k, of kDepth
  int gate_rows;          // from a row of weights to that of its gate; 0: no SwiGLU
  void* y;
  std::int64_t y_stride;
  bool y_is_bf16, accumulate;
  int strips;
};

// kWeights: rows of weights in a strip; with SwiGLU the second half are gates. kSplits: parts of k,
// blocks of a cluster.
template <int kWeights_, int kSplits_>
struct BatchShape {
  static constexpr int kWeights = kWeights_, kSplits = kSplits_;
  static constexpr int kWBytes = kWeights * kTileRowBytes;
  static constexpr int kPieces = kWeights / 8;  // of a strip: eight outputs, four sums of a thread
  static constexpr int kOwn = (kPieces + kSplits - 1) / kSplits;  // pieces that a block adds up
  static constexpr int kPartsBytes = kSplits > 1 ? kSplits* kOwn* kWorkers * 16 : 0;
  static constexpr int kWStages = (kRingBytes - kPartsBytes - kXStages * kXBytes) / kWBytes;
  static constexpr std::size_t kSharedBytes =
      std::size_t{kXStages} * kXBytes + kWStages * kWBytes + kPartsBytes + 1024 + 1024;
  static_assert(kWBytes % 1024 == 0);
};

#if __CUDA_ARCH__ >= 900

// Boxes on their way from memory to those who multiply.
template <int kStages_, int kBytes>
struct BoxRing {
  static constexpr int kStages = kStages_;
  std::byte* boxes;
  Barrier *full, *empty;

  __device__ std::byte* box(int stage) const { return boxes + stage * kBytes; }
  __device__ void init(int readers) const {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], static_cast<std::uint32_t>(readers));
    }
  }
};

template <class Shape>
struct BatchShared {
  BoxRing<kXStages, kXBytes> x;
  BoxRing<Shape::kWStages, Shape::kWBytes> w;
  float4* parts;   // of sums, from all parts of k
  Barrier* added;  // they are here

  __device__ explicit BatchShared(std::byte* memory) {
    x.boxes = memory + (1024 - shared_address(memory) % 1024) % 1024;
    w.boxes = x.boxes + kXStages * kXBytes;
    parts = reinterpret_cast<float4*>(w.boxes + Shape::kWStages * Shape::kWBytes);
    x.full = reinterpret_cast<Barrier*>(reinterpret_cast<std::byte*>(parts) + Shape::kPartsBytes);
    x.empty = x.full + kXStages;
    w.full = x.empty + kXStages;
    w.empty = w.full + Shape::kWStages;
    added = w.empty + Shape::kWStages;
  }
};

// What this block does: a part of k, of one strip after the other.
template <class Shape>
struct BatchShare {
  int split = static_cast<int>(cluster_rank());
  int begin, end;  // steps along k
  int strip = static_cast<int>(blockIdx.x) / Shape::kSplits;
  int strip_step = static_cast<int>(gridDim.x) / Shape::kSplits;

  __device__ explicit BatchShare(const BatchJob& job)
      : begin(job.steps * split / Shape::kSplits), end(job.steps * (split + 1) / Shape::kSplits) {}
  // Pieces that this block adds up: split, split + kSplits, ...
  __device__ int own() const {
    return (Shape::kPieces - split + Shape::kSplits - 1) / Shape::kSplits;
  }
};

template <class Shape>
__device__ int first_out(const BatchJob& job, int strip) {
  return strip * (job.gate_rows > 0 ? Shape::kWeights / 2 : Shape::kWeights);
}

template <class Shape>
__device__ void load_weights(const BatchJob& job, const CUtensorMap& map,
                             const BatchShare<Shape>& share, const BatchShared<Shape>& shared) {
  RingPosition<Shape::kWStages> at;
  int asked = 0;
  for (int strip = share.strip; strip < job.strips; strip += share.strip_step) {
    const int out = first_out<Shape>(job, strip);
    for (int step = share.begin; step < share.end; ++step, at.next()) {
      if (++asked == Shape::kWStages) start_successor();
      barrier_wait(&shared.w.empty[at.stage], at.parity ^ 1);
      if (!elect_lane()) continue;
      Barrier* const full = &shared.w.full[at.stage];
      barrier_arrive_expecting(full, Shape::kWBytes);
      load_box(shared.w.box(at.stage), map, step * kDepth, out, full);
      if (job.gate_rows > 0) {
        load_box(shared.w.box(at.stage) + Shape::kWBytes / 2, map, step * kDepth,
                 out + job.gate_rows, full);
      }
    }
  }
  start_successor();
  wait_for_predecessor();
}

template <class Shape>
__device__ void load_x(const BatchJob& job, const CUtensorMap& map, const BatchShare<Shape>& share,
                       const BatchShared<Shape>& shared) {
  wait_for_predecessor();
  RingPosition<kXStages> at;
  for (int strip = share.strip; strip < job.strips; strip += share.strip_step) {
    for (int step = share.begin; step < share.end; ++step, at.next()) {
      barrier_wait(&shared.x.empty[at.stage], at.parity ^ 1);
      if (!elect_lane()) continue;
      barrier_arrive_expecting(&shared.x.full[at.stage], kXBytes);
      load_box(shared.x.box(at.stage), map, step * kDepth, 0, &shared.x.full[at.stage]);
    }
  }
}

template <class Shape>
struct Positions {
  RingPosition<kXStages> x;
  RingPosition<Shape::kWStages> w;
};

template <class Shape>
__device__ __forceinline__ void multiply(const BatchShare<Shape>& share,
                                         const BatchShared<Shape>& shared, Positions<Shape>& at,
                                         float (&sums)[4 * Shape::kPieces]) {
  const bool releases = threadIdx.x % kWarpLanes == 0;
  const std::uint64_t x0 = wgmma_operand(shared_address(shared.x.boxes));
  const std::uint64_t w0 = wgmma_operand(shared_address(shared.w.boxes));
#pragma unroll
  for (float& sum : sums) sum = 0;
  Positions<Shape> before = at;
  const auto release = [&] {
    if (!releases) return;
    barrier_arrive(&shared.x.empty[before.x.stage]);
    barrier_arrive(&shared.w.empty[before.w.stage]);
  };
  for (int step = share.begin; step < share.end; ++step) {
    barrier_wait(&shared.w.full[at.w.stage], at.w.parity);
    barrier_wait(&shared.x.full[at.x.stage], at.x.parity);
    const std::uint64_t x = wgmma_further(x0, static_cast<std::uint32_t>(at.x.stage) * kXBytes);
    const std::uint64_t w =
        wgmma_further(w0, static_cast<std::uint32_t>(at.w.stage) * Shape::kWBytes);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i) {
      wgmma_k16(sums, wgmma_further(x, i * 32), wgmma_further(w, i * 32));
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (step > share.begin) release();
    before = at;
    at.x.next();
    at.w.next();
  }
  wgmma_wait<0>();
  wgmma_hold(sums);
  if (share.begin < share.end) release();
}

// Each part of k sends what it has of a piece to the block that adds it up; the thread with the
// same index there has the same outputs of the piece.
template <class Shape>
__device__ __forceinline__ void add_parts(const BatchShare<Shape>& share,
                                          const BatchShared<Shape>& shared,
                                          const float (&sums)[4 * Shape::kPieces],
                                          float (&own)[4 * Shape::kOwn]) {
  const std::uint32_t parts =
      shared_address(shared.parts) + (share.split * Shape::kOwn * kWorkers + threadIdx.x) * 16;
#pragma unroll
  for (int piece = 0; piece < Shape::kPieces; ++piece) {
    const unsigned to = piece % Shape::kSplits;
    const int i = 4 * piece;
    store_async(cluster_address(parts + piece / Shape::kSplits * kWorkers * 16, to),
                make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]),
                cluster_address(shared_address(shared.added), to));
  }
  barrier_wait(shared.added, 0);
#pragma unroll
  for (float& sum : own) sum = 0;
#pragma unroll
  for (int from = 0; from < Shape::kSplits; ++from) {
#pragma unroll
    for (int j = 0; j < Shape::kOwn; ++j) {
      if (j >= share.own()) continue;  // nobody has sent it
      const float4 part = shared.parts[(from * Shape::kOwn + j) * kWorkers + threadIdx.x];
      own[4 * j] += part.x, own[4 * j + 1] += part.y;
      own[4 * j + 2] += part.z, own[4 * j + 3] += part.w;
    }
  }
}

// Where a thread's numbers go: rows row and row + 8, columns column and column + 1 of each piece.
struct BatchOutput {
  const BatchJob& job;
  int row, column;

  __device__ explicit BatchOutput(const BatchJob& job_)
      : job(job_),
        row(static_cast<int>(threadIdx.x) / kWarpLanes * 16 +
            static_cast<int>(threadIdx.x) % kWarpLanes / 4),
        column(static_cast<int>(threadIdx.x) % 4 * 2) {}

  // Pieces of which the first begins at output `out`, the next `step` further, up to output `end`.
  template <int kPieces, class Value>
  __device__ __forceinline__ void store(int out, int step, int end, const Value& value) const {
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = 4 * piece + 2 * half, r = row + 8 * half, c = out + piece * step + column;
        if (r < job.rows && c < end) put(r * job.y_stride + c, value(i), value(i + 1));
      }
    }
  }

 private:
  __device__ __forceinline__ void put(std::int64_t at, float a, float b) const {
    if (job.y_is_bf16) {
      auto* const to = reinterpret_cast<std::uint32_t*>(static_cast<__nv_bfloat16*>(job.y) + at);
      *to = pack_bf16(a, b);
      return;
    }
    auto* const to = reinterpret_cast<float2*>(static_cast<float*>(job.y) + at);
    const float2 old = job.accumulate ? *to : make_float2(0, 0);
    *to = make_float2(old.x + a, old.y + b);
  }
};

// A strip that has parts of k: this block's outputs are every kSplits-th piece.
template <class Shape>
__device__ void multiply_parts(const BatchJob& job, const BatchShare<Shape>& share,
                               const BatchShared<Shape>& shared) {
  Positions<Shape> at;
  float sums[4 * Shape::kPieces], own[4 * Shape::kOwn];
  multiply<Shape>(share, shared, at, sums);
  add_parts<Shape>(share, shared, sums, own);
  const int out = share.strip * Shape::kWeights, end = min(job.outs, out + Shape::kWeights);
  BatchOutput(job).store<Shape::kOwn>(out + 8 * share.split, 8 * Shape::kSplits, end,
                                      [&](int i) { return own[i]; });
}

template <class Shape>
__device__ void multiply_strips(const BatchJob& job, const BatchShare<Shape>& share,
                                const BatchShared<Shape>& shared) {
  Positions<Shape> at;
  float sums[4 * Shape::kPieces];
  const BatchOutput output(job);
  for (int strip = share.strip; strip < job.strips; strip += share.strip_step) {
    multiply<Shape>(share, shared, at, sums);
    const int out = first_out<Shape>(job, strip);
    if (job.gate_rows == 0) {
      output.store<Shape::kPieces>(out, 8, job.outs, [&](int i) { return sums[i]; });
    } else if constexpr (Shape::kPieces % 2 == 0) {
      output.store<Shape::kPieces / 2>(out, 8, job.outs, [&](int i) {
        return sums[i] * silu_fast(sums[2 * Shape::kPieces + i]);
      });
    }
  }
}

#endif

template <class Shape>
__global__ void __launch_bounds__(kThreads, 1)
    linear_batch(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                 const BatchJob job) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ std::byte memory[];
  const BatchShared<Shape> shared(memory);
  const BatchShare<Shape> share(job);
  if (threadIdx.x == 0) {
    shared.x.init(kWorkers / kWarpLanes);
    shared.w.init(kWorkers / kWarpLanes);
    barrier_init(shared.added, 1);
    barrier_init_done();
    barrier_arrive_expecting(shared.added, Shape::kSplits * kWorkers * 16 * share.own());
  }
  cluster_sync_relaxed();
  if (threadIdx.x < kWorkers) {
    wait_for_predecessor();
    if constexpr (Shape::kSplits > 1) {
      multiply_parts<Shape>(job, share, shared);
    } else {
      multiply_strips<Shape>(job, share, shared);
    }
  } else if (threadIdx.x < kWorkers + kWarpLanes) {
    load_weights<Shape>(job, w, share, shared);
  } else {
    load_x<Shape>(job, x, share, shared);
  }
  // A block's memory stays until its neighbours need it no more.
  if constexpr (Shape::kSplits > 1) cluster_sync_relaxed();
#endif
}

int ceil_div(std::int64_t a, std::int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

// How many clusters of so many blocks, a multiprocessor each, a card holds at once.
template <class Shape>
int clusters_at_once() {
  static const int count = [] {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {Shape::kSplits, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(Shape::kSplits);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = Shape::kSharedBytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    check_cuda(cudaOccupancyMaxActiveClusters(&clusters, linear_batch<Shape>, &config),
               "counting clusters");
    return clusters;
  }();
  return count;
}

template <class Shape>
BatchJob make_job(const FusedLinearArgs& args) {
  BatchJob job{};
  job.rows = static_cast<int>(args.x.shape[0]);
  job.outs = static_cast<int>(args.y.shape[1]);
  job.steps = ceil_div(args.x.shape[1], kDepth);
  job.gate_rows = args.swiglu ? job.outs : 0;
  job.y = args.y.data;
  job.y_stride = args.y.stride[0];
  job.y_is_bf16 = args.y.is_bf16();
  job.accumulate = args.accumulate;
  job.strips = ceil_div(job.outs, args.swiglu ? Shape::kWeights / 2 : Shape::kWeights);
  return job;
}

template <class Shape>
void launch(const FusedLinearArgs& args, Context& ctx) {
  const auto kernel = linear_batch<Shape>;
  allow_shared(reinterpret_cast<const void*>(kernel), Shape::kSharedBytes,
               "linear's shared memory");
  const BatchJob job = make_job<Shape>(args);
  const int clusters =
      Shape::kSplits > 1 ? job.strips : std::min(job.strips, ctx.gpu()->info().multiprocessors);
  const ConstMatrix w = TensorView<const Bf16, 2>(reinterpret_cast<const Bf16*>(args.w.data),
                                                  {args.w.shape[0], args.w.shape[1]});
  launch_dependent("linear: a batch", kernel,
                   {static_cast<unsigned>(clusters * Shape::kSplits), kThreads, Shape::kSharedBytes,
                    Shape::kSplits},
                   ctx, tensor_map(args.x, kRows),
                   tensor_map(w, args.swiglu ? Shape::kWeights / 2 : Shape::kWeights), job);
}

constexpr int kSplits = 4;
constexpr int kThinStrip = 16;  // rows of weights, below which k is cut in parts

// Strips of so many rows of weights keep every multiprocessor busy once.
int even_strip(const FusedLinearArgs& args, const Context& ctx) {
  return ceil_div(args.w.shape[0], ctx.gpu()->info().multiprocessors);
}

bool has_parts(const FusedLinearArgs& args, const Context& ctx) {
  return !args.swiglu && !args.y.is_bf16() && args.x.shape[1] >= 2048 &&
         even_strip(args, ctx) <= kThinStrip;
}

// Rows of weights in a strip that has parts of k: few enough for all clusters to stand at once.
int strip_with_parts(const FusedLinearArgs& args) {
  constexpr int kNarrow = 64, kWide = 72;
  const int clusters = clusters_at_once<BatchShape<kNarrow, kSplits>>();
  return ceil_div(args.y.shape[1], kNarrow) <= clusters ? kNarrow : kWide;
}

}  // namespace

bool linear_batch_takes(const FusedLinearArgs& args, const Context& ctx) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const std::int64_t rows = args.x.shape[0], k = args.x.shape[1], n = args.w.shape[0];
  return ctx.gpu()->info().compute_capability == 90 && args.path != LinearPath::kGemm &&
         args.compute == Compute::kBf16 && args.x.is_bf16() && args.w.dtype == DType::kBf16 &&
         args.norm_weight == nullptr && args.rest.data == nullptr && rows >= kFewestRows &&
         rows <= kMostRows && n * k >= kFewestWeights && k % 8 == 0 && args.y.shape[1] % 8 == 0 &&
         std::max(n, k) <= kMost && (!args.swiglu || args.y.is_bf16()) &&
         tensor_map_takes(args.x) && reinterpret_cast<std::uintptr_t>(args.y.data) % 8 == 0 &&
         args.y.stride[0] % 2 == 0 && reinterpret_cast<std::uintptr_t>(args.w.data) % 16 == 0;
}

void linear_batch_cuda(const FusedLinearArgs& args, Context& ctx) {
  if (has_parts(args, ctx)) {
    if (strip_with_parts(args) == 64) return launch<BatchShape<64, kSplits>>(args, ctx);
    return launch<BatchShape<72, kSplits>>(args, ctx);
  }
  const int strip = even_strip(args, ctx);
  if (args.swiglu || strip <= 64) return launch<BatchShape<64, 1>>(args, ctx);
  if (strip <= 72) return launch<BatchShape<72, 1>>(args, ctx);
  if (strip <= 80) return launch<BatchShape<80, 1>>(args, ctx);
  launch<BatchShape<128, 1>>(args, ctx);
}

}  // namespace mamba3
