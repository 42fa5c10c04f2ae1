#include <cstdint>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;

struct SwigluBackwardJob {
  const void* h;
  std::int64_t h_stride;
  const void* grad_y;
  std::int64_t grad_y_stride;
  void* grad_h;  // may be h
  std::int64_t grad_h_stride;
  void* y;  // or null
  std::int64_t y_stride;
  std::int64_t rows;
  std::int64_t f;
  int lanes;  // threads side by side on a row, a power of two
  unsigned blocks_per_row;
};

// silu(gate), in the forward op's order of roundings, and its slope s (1 + gate (1 - s)). Neither s
// nor 1 - s is made by taking a number from 1, so both are good where they are small. In float, as
// the forward op has it.
struct Gate {
  __device__ __forceinline__ explicit Gate(float gate) : silu(mamba3::silu(gate)) {
    const float e = expf(-fabsf(gate));
    const float larger = 1.0f / (1.0f + e);
    const float smaller = e * larger;
    slope = gate < 0 ? smaller * fmaf(gate, larger, 1.0f) : larger * fmaf(gate, smaller, 1.0f);
  }
  float silu;
  float slope;
};

// A thread takes a vector of a row. Blocks side by side take pieces of the same rows.
template <int V, class T>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(const SwigluBackwardJob job) {
  start_successor();
  wait_for_predecessor();
  const unsigned rows_each = kThreads / job.lanes;
  const std::int64_t row =
      std::int64_t{blockIdx.x / job.blocks_per_row} * rows_each + threadIdx.x / job.lanes;
  const std::int64_t i = (std::int64_t{blockIdx.x % job.blocks_per_row} * job.lanes +
                          (threadIdx.x & (job.lanes - 1))) *
                         V;
  if (row >= job.rows || i >= job.f) return;
  const T* h = static_cast<const T*>(job.h) + row * job.h_stride + i;
  float up[V];
  float gate[V];
  float grad[V];
  load_vector<V>(h, up);
  load_vector<V>(h + job.f, gate);
  load_vector<V>(static_cast<const T*>(job.grad_y) + row * job.grad_y_stride + i, grad);
  float y[V];
  for (int v = 0; v < V; ++v) {
    const Gate at(gate[v]);
    y[v] = up[v] * at.silu;
    gate[v] = grad[v] * at.slope * up[v];
    up[v] = grad[v] * at.silu;
  }
  T* grad_h = static_cast<T*>(job.grad_h) + row * job.grad_h_stride + i;
  store_vector<V>(up, grad_h);
  store_vector<V>(gate, grad_h + job.f);
  if (job.y != nullptr) store_vector<V>(y, static_cast<T*>(job.y) + row * job.y_stride + i);
}

template <int V, class T>
void launch(SwigluBackwardJob job, Context& ctx) {
  const std::int64_t vectors = (job.f + V - 1) / V;
  // As many threads as fill rows to their ends; a warp at least.
  job.lanes = kThreads;
  while (job.lanes > kWarpLanes && vectors % job.lanes != 0) job.lanes /= 2;
  job.blocks_per_row = grid_blocks(vectors, job.lanes);
  const std::int64_t row_blocks = grid_blocks(job.rows, kThreads / job.lanes);
  launch_dependent("swiglu_backward", swiglu_backward_kernel<V, T>,
                   {grid_blocks(row_blocks * job.blocks_per_row), kThreads}, ctx, job);
}

// Accesses of 16 bytes where all rows allow them.
template <class T>
void launch_typed(const SwigluBackwardJob& job, Context& ctx) {
  constexpr int kVector = 16 / sizeof(T);
  const bool vectors =
      job.f % kVector == 0 && takes_vectors<kVector>(static_cast<const T*>(job.h), job.h_stride) &&
      takes_vectors<kVector>(static_cast<const T*>(job.grad_y), job.grad_y_stride) &&
      takes_vectors<kVector>(static_cast<const T*>(job.grad_h), job.grad_h_stride) &&
      takes_vectors<kVector>(static_cast<const T*>(job.y), job.y_stride);
  vectors ? launch<kVector, T>(job, ctx) : launch<1, T>(job, ctx);
}

}  // namespace

void swiglu_backward_cuda(const SwigluBackwardArgs& args, Context& ctx) {
  const SwigluBackwardJob job{args.h.data,           args.h.stride[0], args.grad_y.data,
                              args.grad_y.stride[0], args.grad_h.data, args.grad_h.stride[0],
                              args.y.data,           args.y.stride[0], args.grad_y.shape[0],
                              args.grad_y.shape[1],  kWarpLanes,       1};
  args.h.is_bf16() ? launch_typed<__nv_bfloat16>(job, ctx) : launch_typed<float>(job, ctx);
}

}  // namespace mamba3
