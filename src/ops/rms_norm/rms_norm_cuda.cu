#include <cstdint>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
// Vectors of a row that a thread keeps between its two passes: rows of up to 4096 are read once.
constexpr int kHeld = 4;
// A row of up to so many numbers is a warp's: a block's threads would mostly idle.
constexpr std::int64_t kMostOfAWarp = kHeld * 4 * kWarpLanes;

struct RmsNormJob {
  const float* residual;
  std::int64_t residual_stride;
  float* sum;  // with hidden: where the sum goes, perhaps residual itself
  std::int64_t sum_stride;
  const float* hidden;  // or null
  std::int64_t hidden_stride;
  const float* weight;
  double eps;
  void* y;
  std::int64_t y_stride;
  std::int64_t rows;
  std::int64_t d;
};

// One row's pointers. Y: the type of y.
template <class Y>
struct Row {
  const float* residual;
  float* sum;
  const float* hidden;
  const float* weight;
  Y* y;
};

template <int V, class Y>
__device__ __forceinline__ void add_and_square(const Row<Y>& row, std::int64_t i,
                                               float (&values)[V], double& sum) {
  load_vector<V>(row.residual + i, values);
  if (row.hidden != nullptr) {
    float added[V];
    load_vector<V>(row.hidden + i, added);
    for (int v = 0; v < V; ++v) values[v] += added[v];
    store_vector<V>(values, row.sum + i);
  }
  for (int v = 0; v < V; ++v) sum = fma(double{values[v]}, double{values[v]}, sum);
}

template <int V, class Y>
__device__ __forceinline__ void scale(const Row<Y>& row, std::int64_t i, const float (&values)[V],
                                      float rstd) {
  float out[V];
  load_vector<V>(row.weight + i, out);
  for (int v = 0; v < V; ++v) out[v] *= values[v] * rstd;
  store_vector<V>(out, row.y + i);
}

// Every thread of a row gets its sum.
template <int kRowThreads>
__device__ double row_sum(double value) {
  value = warp_sum(value);
  if constexpr (kRowThreads == kWarpLanes) return value;
  __shared__ double warps[kWarps];
  if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = value;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += warps[i];
  return sum;
}

// A block or a warp a row. The order of the sum depends on d and V alone.
template <int V, int kRowThreads, class Y>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNormJob job) {
  start_successor();
  wait_for_predecessor();
  constexpr int kRows = kThreads / kRowThreads;
  const std::int64_t at = std::int64_t{blockIdx.x} * kRows + threadIdx.x / kRowThreads;
  if (at >= job.rows) return;
  const Row<Y> row{job.residual + at * job.residual_stride, job.sum + at * job.sum_stride,
                   job.hidden == nullptr ? nullptr : job.hidden + at * job.hidden_stride,
                   job.weight, static_cast<Y*>(job.y) + at * job.y_stride};
  constexpr std::int64_t kStep = kRowThreads * V;
  const std::int64_t first = std::int64_t{threadIdx.x % kRowThreads} * V;
  float held[kHeld][V];
  float values[V];
  double sum = 0;
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    if (first + c * kStep < job.d) add_and_square<V>(row, first + c * kStep, held[c], sum);
  }
  for (std::int64_t i = first + kHeld * kStep; i < job.d; i += kStep) {
    add_and_square<V>(row, i, values, sum);
  }
  const double mean = row_sum<kRowThreads>(sum) / static_cast<double>(job.d);
  const auto rstd = static_cast<float>(1.0 / sqrt(mean + job.eps));
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    if (first + c * kStep < job.d) scale<V>(row, first + c * kStep, held[c], rstd);
  }
  for (std::int64_t i = first + kHeld * kStep; i < job.d; i += kStep) {
    load_vector<V>(row.sum + i, values);
    scale<V>(row, i, values, rstd);
  }
}

template <int V, class Y>
void launch(const RmsNormJob& job, Context& ctx) {
  if (job.d <= kMostOfAWarp) {
    launch_dependent("rms_norm", rms_norm_kernel<V, kWarpLanes, Y>,
                     {grid_blocks(job.rows, kWarps), kThreads}, ctx, job);
  } else {
    launch_dependent("rms_norm", rms_norm_kernel<V, kThreads, Y>, {grid_blocks(job.rows), kThreads},
                     ctx, job);
  }
}

template <class Y>
void launch_typed(const RmsNormJob& job, Context& ctx) {
  const bool vectors =
      job.d % 4 == 0 && takes_vectors(job.residual, job.residual_stride) &&
      takes_vectors(job.sum, job.sum_stride) && takes_vectors(job.hidden, job.hidden_stride) &&
      takes_vectors(job.weight, 0) && takes_vectors(static_cast<const Y*>(job.y), job.y_stride);
  vectors ? launch<4, Y>(job, ctx) : launch<1, Y>(job, ctx);
}

}  // namespace

void rms_norm_cuda(const RmsNormArgs& args, Context& ctx) {
  const TensorView<float, 2>& sum = args.sum.data == nullptr ? args.residual : args.sum;
  const RmsNormJob job{args.residual.data, args.residual.stride[0], sum.data,
                       sum.stride[0],      args.hidden.data,        args.hidden.stride[0],
                       args.weight,        double{args.eps},        args.y.data,
                       args.y.stride[0],   args.residual.shape[0],  args.residual.shape[1]};
  if (job.rows == 0 || job.d == 0) return;
  args.y.is_bf16() ? launch_typed<__nv_bfloat16>(job, ctx) : launch_typed<float>(job, ctx);
}

}  // namespace mamba3
