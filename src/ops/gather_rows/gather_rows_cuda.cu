#include <algorithm>
#include <cstdint>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlockElements = 8192;  // states are rows of many thousands
constexpr std::int64_t kMostBlocks = 64;       // of a row

struct GatherJob {
  const float* x;
  std::int64_t x_rows;
  std::int64_t x_stride;
  const std::int64_t* rows;
  std::int64_t d;
  float* y;
  std::int64_t y_stride;
};

// A block a row, or some of them a long one. A row that is not there gives NaNs, see
// embedding_cuda.cu.
template <int V>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(const GatherJob job) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t row = job.rows[blockIdx.x];
  const bool known = row >= 0 && row < job.x_rows;
  const float* from = job.x + (known ? row : 0) * job.x_stride;
  float* to = job.y + std::int64_t{blockIdx.x} * job.y_stride;
  const std::int64_t first = std::int64_t{blockIdx.y} * kThreads + threadIdx.x;
  for (std::int64_t i = first * V; i < job.d; i += std::int64_t{gridDim.y} * kThreads * V) {
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
  const auto of_row =
      static_cast<unsigned>(std::clamp<std::int64_t>(job.d / kBlockElements, 1, kMostBlocks));
  launch_dependent("gather_rows", vectors ? gather_rows_kernel<4> : gather_rows_kernel<1>,
                   {dim3(count, of_row), kThreads}, ctx, job);
}

}  // namespace mamba3
