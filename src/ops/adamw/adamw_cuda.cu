#include <cstdint>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/adamw/adamw_factors.h"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;

struct AdamwJob {
  AdamwFactors by;
  std::int64_t count;
  float* weights;
  const float* grad;
  float* first;
  float* second;
  __nv_bfloat16* rounded;  // or null
};

// Each operation rounds as on a CPU with fused multiply-add, so both make the same bits.
__device__ __forceinline__ void adamw_step(const AdamwFactors& by, float grad, float& weight,
                                           float& first, float& second) {
  const float g = __fmul_rn(grad, by.grad);
  first = __fmaf_rn(by.take1, __fsub_rn(g, first), first);
  second = __fmaf_rn(by.keep2, second, __fmul_rn(by.take2, __fmul_rn(g, g)));
  const float divisor = __fmaf_rn(__fsqrt_rn(second), by.root, by.eps);
  const float update = __fdiv_rn(__fmul_rn(by.rate, first), divisor);
  weight = __fsub_rn(__fmul_rn(weight, by.keep), update);
}

template <int V>
__device__ __forceinline__ void adamw_elements(const AdamwJob& job, std::int64_t i) {
  float grad[V];
  float weights[V];
  float first[V];
  float second[V];
  load_vector<V>(job.grad + i, grad);
  load_vector<V>(job.weights + i, weights);
  load_vector<V>(job.first + i, first);
  load_vector<V>(job.second + i, second);
  for (int v = 0; v < V; ++v) adamw_step(job.by, grad[v], weights[v], first[v], second[v]);
  store_vector<V>(weights, job.weights + i);
  store_vector<V>(first, job.first + i);
  store_vector<V>(second, job.second + i);
  if (job.rounded != nullptr) store_vector<V>(weights, job.rounded + i);
}

// A thread takes V elements; where fewer are left, one by one.
template <int V>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const AdamwJob job) {
  start_successor();
  wait_for_predecessor();
  std::int64_t i = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * V;
  if (i + V <= job.count) {
    adamw_elements<V>(job, i);
  } else {
    for (; i < job.count; ++i) adamw_elements<1>(job, i);
  }
}

}  // namespace

void adamw_cuda(const AdamwArgs& args, Context& ctx) {
  const AdamwJob job{AdamwFactors(args),
                     args.count,
                     args.weights,
                     args.grad,
                     args.first,
                     args.second,
                     reinterpret_cast<__nv_bfloat16*>(args.rounded)};
  if (job.count == 0) return;
  const bool vectors = takes_vectors(job.weights, 0) && takes_vectors(job.grad, 0) &&
                       takes_vectors(job.first, 0) && takes_vectors(job.second, 0) &&
                       takes_vectors(job.rounded, 0);
  launch_dependent("adamw", vectors ? adamw_kernel<4> : adamw_kernel<1>,
                   {grid_blocks(job.count, kThreads * (vectors ? 4 : 1)), kThreads}, ctx, job);
}

}  // namespace mamba3
