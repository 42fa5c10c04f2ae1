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

struct RmsNormJob {
  float* residual;
  std::int64_t residual_stride;
  const float* hidden;  // or null
  std::int64_t hidden_stride;
  const float* weight;
  double eps;
  void* y;
  std::int64_t y_stride;
  std::int64_t d;
};

// One row's pointers. Y: the type of y.
template <class Y>
struct Row {
  float* residual;
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
    store_vector<V>(values, row.residual + i);
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

// Every thread gets the sum.
__device__ double block_sum(double value) {
  __shared__ double warps[kWarps];
  value = warp_sum(value);
  if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = value;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += warps[i];
  return sum;
}

// A block a row. The order of the sum depends on d and V alone.
template <int V, class Y>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const RmsNormJob job) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t at = blockIdx.x;
  const Row<Y> row{job.residual + at * job.residual_stride,
                   job.hidden == nullptr ? nullptr : job.hidden + at * job.hidden_stride,
                   job.weight, static_cast<Y*>(job.y) + at * job.y_stride};
  constexpr std::int64_t kStep = kThreads * V;
  const std::int64_t first = std::int64_t{threadIdx.x} * V;
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
  const double mean = block_sum(sum) / static_cast<double>(job.d);
  const auto rstd = static_cast<float>(1.0 / sqrt(mean + job.eps));
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    if (first + c * kStep < job.d) scale<V>(row, first + c * kStep, held[c], rstd);
  }
  for (std::int64_t i = first + kHeld * kStep; i < job.d; i += kStep) {
    load_vector<V>(row.residual + i, values);
    scale<V>(row, i, values, rstd);
  }
}

template <class Y>
void launch(const RmsNormJob& job, unsigned rows, Context& ctx) {
  const bool vectors = job.d % 4 == 0 && takes_vectors(job.residual, job.residual_stride) &&
                       takes_vectors(job.hidden, job.hidden_stride) &&
                       takes_vectors(job.weight, 0) &&
                       takes_vectors(static_cast<const Y*>(job.y), job.y_stride);
  launch_dependent("rms_norm", vectors ? rms_norm_kernel<4, Y> : rms_norm_kernel<1, Y>,
                   {rows, kThreads}, ctx, job);
}

}  // namespace

void rms_norm_cuda(const RmsNormArgs& args, Context& ctx) {
  const RmsNormJob job{
      args.residual.data,    args.residual.stride[0], args.hidden.data, args.hidden.stride[0],
      args.weight,           double{args.eps},        args.y.data,      args.y.stride[0],
      args.residual.shape[1]};
  const unsigned rows = grid_blocks(args.residual.shape[0]);
  if (rows == 0 || job.d == 0) return;
  args.y.is_bf16() ? launch<__nv_bfloat16>(job, rows, ctx) : launch<float>(job, rows, ctx);
}

}  // namespace mamba3
