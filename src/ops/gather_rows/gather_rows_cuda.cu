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

// Two bf16 numbers go as one of fp32; those of a row that is not there are NaNs as well.
GatherJob make_job(const GatherRowsArgs& args) {
  const std::int64_t in_one = args.x.is_bf16() ? 2 : 1;
  const std::int64_t d = args.x.shape[1], x_stride = args.x.stride[0], y_stride = args.y.stride[0];
  check_input(d % in_one == 0 && x_stride % in_one == 0 && y_stride % in_one == 0,
              "gather_rows: rows of ", d, " bf16 numbers, ", x_stride, " and ", y_stride,
              " apart; expected even numbers");
  return {static_cast<const float*>(args.x.data),
          args.x.shape[0],
          x_stride / in_one,
          args.rows.data(),
          d / in_one,
          static_cast<float*>(args.y.data),
          y_stride / in_one};
}

}  // namespace

void gather_rows_cuda(const GatherRowsArgs& args, Context& ctx) {
  const GatherJob job = make_job(args);
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
