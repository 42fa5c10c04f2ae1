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
constexpr int kThreads = 512;
constexpr int kBlocksPerMultiprocessor = 4;
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

__global__ void sum_all(const uint4* data, std::int64_t count, std::uint32_t* out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  std::uint32_t sum = 0;
  for (; i + (kLoads - 1) * step < count; i += kLoads * step) {
    uint4 values[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) values[j] = __ldcs(data + i + j * step);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) sum += values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
  }
  for (; i < count; i += step) sum += data[i].x;
  if (sum == 1) *out = sum;  // keeps the loads
}

__global__ void write_all(uint4* to, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const auto number = static_cast<std::uint32_t>(threadIdx.x);
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    __stcs(to + i, make_uint4(number, blockIdx.x, number, blockIdx.x));
  }
}

// Every number, one bit turned over, to `to`: another block or the same.
__global__ void change_all(const uint4* from, uint4* to, std::int64_t count) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + (kLoads - 1) * step < count; i += kLoads * step) {
    uint4 values[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) values[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      values[j].x ^= 1u;
      __stcs(to + i + j * step, values[j]);
    }
  }
  for (; i < count; i += step) to[i] = from[i];
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

}  // namespace

double measured_bandwidth_cuda(MemoryTraffic traffic, Context& ctx) {
  constexpr int kRepeats = 8;
  const bool two_ways = traffic == MemoryTraffic::kCopy || traffic == MemoryTraffic::kUpdate;
  ArenaScope scope(ctx.workspace());
  auto* data = reinterpret_cast<uint4*>(random_numbers(kBlockBytes, false, scope, ctx));
  uint4* to = data;
  if (traffic == MemoryTraffic::kCopy) to = scope.allocate<uint4>(kBlockBytes / 16);
  auto* sum = scope.allocate<std::uint32_t>(1);
  const int blocks = kBlocksPerMultiprocessor * ctx.gpu()->info().multiprocessors;
  const cudaStream_t stream = stream_of(ctx);
  const double seconds = fastest_seconds(ctx, kRepeats, [&] {
    if (traffic == MemoryTraffic::kRead) {
      sum_all<<<blocks, kThreads, 0, stream>>>(data, kBlockBytes / 16, sum);
    } else if (traffic == MemoryTraffic::kWrite) {
      write_all<<<blocks, kThreads, 0, stream>>>(data, kBlockBytes / 16);
    } else {
      change_all<<<blocks, kThreads, 0, stream>>>(data, to, kBlockBytes / 16);
    }
    check_launch("moving memory");
  });
  return static_cast<double>(two_ways ? 2 * kBlockBytes : kBlockBytes) / seconds;
}

double measured_gemm_rate_cuda(const GemmShape& shape, Compute compute, Context& ctx) {
  constexpr double kFlopsPerRun = 2e12;
  const bool bf16 = compute == Compute::kBf16;
  const std::int64_t bytes = bf16 ? 2 : 4;
  ArenaScope scope(ctx.workspace());
  CublasProduct product;
  product.x = random_numbers(shape.m * shape.k * bytes, bf16, scope, ctx);
  product.x_stride = product.k = shape.k;
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
