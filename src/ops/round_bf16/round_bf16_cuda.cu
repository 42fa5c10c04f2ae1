#include <cstdint>

#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;

// A thread takes V numbers; where fewer are left, one by one.
template <int V>
__global__ void __launch_bounds__(kThreads)
    round_bf16_kernel(const float* values, std::int64_t count, __nv_bfloat16* rounded) {
  start_successor();
  wait_for_predecessor();
  std::int64_t i = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * V;
  if (i + V <= count) {
    float held[V];
    load_vector<V>(values + i, held);
    store_vector<V>(held, rounded + i);
  } else {
    for (; i < count; ++i) rounded[i] = __float2bfloat16_rn(values[i]);
  }
}

}  // namespace

void round_bf16_cuda(const RoundBf16Args& args, Context& ctx) {
  auto* rounded = reinterpret_cast<__nv_bfloat16*>(args.rounded);
  const bool vectors = takes_vectors(args.values, 0) && takes_vectors(rounded, 0);
  launch_dependent("round_bf16", vectors ? round_bf16_kernel<4> : round_bf16_kernel<1>,
                   {grid_blocks(args.count, kThreads * (vectors ? 4 : 1)), kThreads}, ctx,
                   args.values, args.count, rounded);
}

}  // namespace mamba3
