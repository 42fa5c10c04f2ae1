#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;

struct SwigluJob {
  const float* h;
  std::int64_t h_stride;
  float* y;
  std::int64_t y_stride;
  std::int64_t rows;
  std::int64_t f;
  std::int64_t blocks_per_row;
};

// A block takes kThreads vectors of a row. In float, not in double as on the CPU: cards for
// desktops have hardly any double, and the product that follows rounds to bf16 or sums in float.
template <int V>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const SwigluJob job) {
  const std::int64_t row = blockIdx.x / job.blocks_per_row;
  const std::int64_t i = (blockIdx.x % job.blocks_per_row * kThreads + threadIdx.x) * V;
  if (i >= job.f) return;
  const float* up_at = job.h + row * job.h_stride + i;
  float up[V];
  float gate[V];
  load_vector<V>(up_at, up);
  load_vector<V>(up_at + job.f, gate);
  for (int v = 0; v < V; ++v) up[v] *= silu(gate[v]);
  store_vector<V>(up, job.y + row * job.y_stride + i);
}

template <int V>
void launch(SwigluJob job, cudaStream_t stream) {
  job.blocks_per_row = (job.f + kThreads * V - 1) / (kThreads * V);
  swiglu_kernel<V><<<grid_blocks(job.rows * job.blocks_per_row), kThreads, 0, stream>>>(job);
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
  if (job.f % 4 == 0 && takes_float4(job.h, job.h_stride) && takes_float4(job.y, job.y_stride)) {
    launch<4>(job, stream_of(ctx));
  } else {
    launch<1>(job, stream_of(ctx));
  }
  check_launch("swiglu");
}

}  // namespace mamba3
