// What a GPU can do at best.
#include <algorithm>
#include <chrono>

#include "core/arena.h"
#include "ops/ceilings/ceilings_cuda.h"
#include "ops/launch.cuh"
#include "ops/linear/cublas_product.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kBlockBytes = std::int64_t{1} << 30;
constexpr int kRuns = 5;
constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kLoads = 4;  // of each thread before it waits for the first

__global__ void fill_random(std::uint32_t* out, std::int64_t count, bool bf16) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 747796405u + 2891336453u;
    x = ((x >> ((x >> 28) + 4)) ^ x) * 277803737u;
    // Two bf16 numbers in +-[0.5, 2): signs and mantissas are random.
    out[i] = bf16 ? (x & 0x80ff80ffu) | 0x3f003f00u : x;
  }
}

// Blocks take pieces of kThreads * kLoads vectors in turn. kUpdate is a copy to where it came from;
// every number changes, so that nothing can be left out.
template <MemoryTraffic kTraffic, bool kStreaming>
__global__ void __launch_bounds__(kThreads)
    move_all(const uint4* from, uint4* to, std::int64_t pieces, std::uint32_t* out) {
  constexpr bool kReads = kTraffic != MemoryTraffic::kWrite;
  constexpr bool kWrites = kTraffic != MemoryTraffic::kRead;
  std::uint32_t sum = 0;
  for (std::int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const std::int64_t at = piece * kThreads * kLoads + threadIdx.x;
    uint4 values[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      values[j] = make_uint4(threadIdx.x, blockIdx.x, threadIdx.x, blockIdx.x);
      if (kReads)
        values[j] = kStreaming ? __ldcs(from + at + j * kThreads) : from[at + j * kThreads];
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      values[j].x ^= 1u;
      if (!kWrites) sum += values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
      if (kWrites && kStreaming) __stcs(to + at + j * kThreads, values[j]);
      if (kWrites && !kStreaming) to[at + j * kThreads] = values[j];
    }
  }
  if (sum == 1) *out = sum;  // keeps the loads
}

template <class Body>
double fastest_seconds(Context& ctx, int repeats, const Body& body) {
  double best = 0;
  for (int run = 0; run <= kRuns; ++run) {
    ctx.gpu()->synchronize();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) body();
    ctx.gpu()->synchronize();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / repeats;
    if (run == 1 || (run > 1 && seconds < best)) best = seconds;  // run 0 warms up
  }
  return best;
}

std::uint32_t* random_numbers(std::int64_t bytes, bool bf16, ArenaScope& scope, Context& ctx) {
  auto* out = scope.allocate<std::uint32_t>((bytes + 3) / 4);
  fill_random<<<1024, kThreads, 0, stream_of(ctx)>>>(out, (bytes + 3) / 4, bf16);
  check_launch("filling with random numbers");
  return out;
}

template <MemoryTraffic kTraffic>
double bandwidth(Context& ctx) {
  constexpr int kRepeats = 8;
  constexpr std::int64_t kPieces = kBlockBytes / (16 * kThreads * kLoads);
  constexpr bool kBoth = kTraffic == MemoryTraffic::kCopy || kTraffic == MemoryTraffic::kUpdate;
  ArenaScope scope(ctx.workspace());
  auto* from = reinterpret_cast<uint4*>(random_numbers(kBlockBytes, false, scope, ctx));
  uint4* to = from;
  if (kTraffic == MemoryTraffic::kCopy) to = scope.allocate<uint4>(kBlockBytes / 16);
  auto* sum = scope.allocate<std::uint32_t>(1);
  double best = 0;
  // Few blocks that stay, or one for each piece; with and without a trace in the cache.
  for (const std::int64_t blocks :
       {std::int64_t{kBlocksPerMultiprocessor} * ctx.gpu()->info().multiprocessors, kPieces}) {
    for (const auto kernel : {move_all<kTraffic, true>, move_all<kTraffic, false>}) {
      const double seconds = fastest_seconds(ctx, kRepeats, [&] {
        kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(ctx)>>>(from, to, kPieces,
                                                                               sum);
        check_launch("moving memory");
      });
      best = std::max(best, static_cast<double>(kBoth ? 2 * kBlockBytes : kBlockBytes) / seconds);
    }
  }
  return best;
}

}  // namespace

double measured_bandwidth_cuda(MemoryTraffic traffic, Context& ctx) {
  switch (traffic) {
    case MemoryTraffic::kWrite:
      return bandwidth<MemoryTraffic::kWrite>(ctx);
    case MemoryTraffic::kCopy:
      return bandwidth<MemoryTraffic::kCopy>(ctx);
    case MemoryTraffic::kUpdate:
      return bandwidth<MemoryTraffic::kUpdate>(ctx);
    case MemoryTraffic::kRead:
      break;
  }
  return bandwidth<MemoryTraffic::kRead>(ctx);
}

double measured_gemm_rate_cuda(const GemmShape& shape, Compute compute, Context& ctx) {
  constexpr double kFlopsPerRun = 2e12;
  const bool bf16 = compute == Compute::kBf16;
  const std::int64_t bytes = bf16 ? 2 : 4;
  ArenaScope scope(ctx.workspace());
  CublasProduct product;
  product.x = random_numbers(shape.m * shape.k * bytes, bf16, scope, ctx);
  product.x_stride = product.w_stride = product.k = shape.k;
  product.w = random_numbers(shape.n * shape.k * bytes, bf16, scope, ctx);
  product.bf16 = bf16;
  product.y = TensorView<float, 2>(scope.allocate<float>(shape.m * shape.n), {shape.m, shape.n});
  void* workspace = scope.allocate<std::byte>(kCublasWorkspaceBytes);
  const int repeats = static_cast<int>(std::clamp(kFlopsPerRun / shape.flops(), 3.0, 200.0));
  const double seconds =
      fastest_seconds(ctx, repeats, [&] { cublas_product(product, workspace, ctx); });
  return shape.flops() / seconds;
}

}  // namespace mamba3
