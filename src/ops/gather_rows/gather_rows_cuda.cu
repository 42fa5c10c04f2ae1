#include <cstdint>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;

struct GatherJob {
  const float* x;
  std::int64_t x_rows;
  std::int64_t x_stride;
  const std::int64_t* rows;
  std::int64_t d;
  float* y;
  std::int64_t y_stride;
};

// A block a row. A row that is not there gives NaNs, see embedding_cuda.cu.
template <int V>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const GatherJob job) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t row = job.rows[blockIdx.x];
  const bool known = row >= 0 && row < job.x_rows;
  const float* from = job.x + (known ? row : 0) * job.x_stride;
  float* to = job.y + std::int64_t{blockIdx.x} * job.y_stride;
  for (std::int64_t i = std::int64_t{threadIdx.x} * V; i < job.d; i += kThreads * V) {
    float values[V];
    for (int v = 0; v < V; ++v) values[v] = nanf("");
    if (known) load_vector<V>(from + i, values);
    store_vector<V>(values, to + i);
  }
}

}  // namespace

void gather_rows_cuda(const GatherRowsArgs& args, Context& ctx) {
  const GatherJob job{args.x.data,     args.x.shape[0], args.x.stride[0], args.rows.data(),
                      args.x.shape[1], args.y.data,     args.y.stride[0]};
  const unsigned count = grid_blocks(static_cast<std::int64_t>(args.rows.size()));
  if (count == 0 || job.d == 0) return;
  const bool vectors =
      job.d % 4 == 0 && takes_vectors(job.x, job.x_stride) && takes_vectors(job.y, job.y_stride);
  launch_dependent("gather_rows", vectors ? gather_rows_kernel<4> : gather_rows_kernel<1>,
                   {count, kThreads}, ctx, job);
}

}  // namespace mamba3
