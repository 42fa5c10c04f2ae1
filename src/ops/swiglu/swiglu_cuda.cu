#include <cstdint>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;

struct SwigluJob {
  const void* h;
  std::int64_t h_stride;
  void* y;
  std::int64_t y_stride;
  std::int64_t rows;
  std::int64_t f;
  std::int64_t blocks_per_row;
};

// A block takes kThreads vectors of a row. In float, not in double as on the CPU: cards for
// desktops have hardly any double, and the product that follows rounds to bf16 or sums in float.
template <int V, class H, class Y>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const SwigluJob job) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t row = blockIdx.x / job.blocks_per_row;
  const std::int64_t i = (blockIdx.x % job.blocks_per_row * kThreads + threadIdx.x) * V;
  if (i >= job.f) return;
  const H* up_at = static_cast<const H*>(job.h) + row * job.h_stride + i;
  float up[V];
  float gate[V];
  load_vector<V>(up_at, up);
  load_vector<V>(up_at + job.f, gate);
  for (int v = 0; v < V; ++v) up[v] *= silu(gate[v]);
  store_vector<V>(up, static_cast<Y*>(job.y) + row * job.y_stride + i);
}

template <int V, class H, class Y>
void launch(SwigluJob job, Context& ctx) {
  job.blocks_per_row = (job.f + kThreads * V - 1) / (kThreads * V);
  launch_dependent("swiglu", swiglu_kernel<V, H, Y>,
                   {grid_blocks(job.rows * job.blocks_per_row), kThreads}, ctx, job);
}

template <class H, class Y>
void launch_typed(const SwigluJob& job, Context& ctx) {
  const bool vectors = job.f % 4 == 0 &&
                       takes_vectors(static_cast<const H*>(job.h), job.h_stride) &&
                       takes_vectors(static_cast<const Y*>(job.y), job.y_stride);
  vectors ? launch<4, H, Y>(job, ctx) : launch<1, H, Y>(job, ctx);
}

}  // namespace

void swiglu_cuda(const SwigluArgs& args, Context& ctx) {
  const SwigluJob job{args.h.data,
                      args.h.stride[0],
                      args.y.data,
                      args.y.stride[0],
                      args.y.shape[0],
                      args.y.shape[1],
                      1};
  if (job.rows == 0 || job.f == 0) return;
  if (args.h.is_bf16()) return launch_typed<__nv_bfloat16, __nv_bfloat16>(job, ctx);
  args.y.is_bf16() ? launch_typed<float, __nv_bfloat16>(job, ctx)
                   : launch_typed<float, float>(job, ctx);
}

}  // namespace mamba3
