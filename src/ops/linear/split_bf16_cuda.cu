#include "ops/linear/split_bf16_cuda.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;

struct SplitJob {
  const float* x;
  std::int64_t x_stride;
  std::int64_t rows, k;
  __nv_bfloat16* out;
  std::int64_t stride;
  int parts;
};

// V neighbours a thread.
template <int V>
__global__ void __launch_bounds__(kThreads) split_bf16_kernel(const SplitJob job) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t column = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (column >= job.k) return;
  for (std::int64_t row = blockIdx.y; row < job.rows; row += gridDim.y) {
    float rest[V];
    load_vector<V>(job.x + row * job.x_stride + column, rest);
    for (int i = 0; i < job.parts; ++i) {
      store_vector<V>(rest, job.out + (i * job.rows + row) * job.stride + column);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float part = __bfloat162float(__float2bfloat16_rn(rest[v]));
        rest[v] = isfinite(rest[v]) ? rest[v] - part : 0.0f;
      }
    }
  }
}

}  // namespace

Bf16Parts split_bf16(const ConstMatrix& x, std::int64_t stride, int parts, ArenaScope& scope,
                     Context& ctx) {
  const std::int64_t rows = x.shape[0], k = x.shape[1];
  Bf16* const out = scope.allocate<Bf16>(parts * rows * stride);
  const SplitJob job{x.floats(), x.stride[0], rows, k, reinterpret_cast<__nv_bfloat16*>(out),
                     stride,     parts};
  const bool vectors = k % 4 == 0 && takes_vectors(job.x, rows > 1 ? job.x_stride : 0) &&
                       takes_vectors(job.out, stride);
  const dim3 grid(grid_blocks(k, kThreads * (vectors ? 4 : 1)),
                  static_cast<unsigned>(std::min<std::int64_t>(rows, 65535)));
  launch_dependent("rounding to bf16", vectors ? split_bf16_kernel<4> : split_bf16_kernel<1>,
                   {grid, kThreads}, ctx, job);
  return {out, rows, stride};
}

}  // namespace mamba3
