// What a GPU can do at best.
#include <algorithm>
#include <chrono>

#include "core/arena.h"
#include "ops/ceilings/ceilings_cuda.h"
#include "ops/launch.cuh"
#include "ops/linear/cublas_product.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kReadBytes = std::int64_t{1} << 30;
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

}  // namespace

double measured_read_bandwidth_cuda(Context& ctx) {
  constexpr int kRepeats = 8;
  ArenaScope scope(ctx.workspace());
  const auto* data = reinterpret_cast<const uint4*>(random_numbers(kReadBytes, false, scope, ctx));
  auto* sum = scope.allocate<std::uint32_t>(1);
  const int blocks = kBlocksPerMultiprocessor * ctx.gpu()->info().multiprocessors;
  const double seconds = fastest_seconds(ctx, kRepeats, [&] {
    sum_all<<<blocks, kThreads, 0, stream_of(ctx)>>>(data, kReadBytes / 16, sum);
    check_launch("reading");
  });
  return static_cast<double>(kReadBytes) / seconds;
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
