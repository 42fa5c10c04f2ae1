// Tensors are cut into pieces of kPiece elements, a block each, and the sums of all pieces are
// added by one block. Kernels take the list of tensors by value, so many tensors take some
// launches.
#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;
constexpr int kMostThreads = 1024;
constexpr std::int64_t kPiece = std::int64_t{1} << 15;
constexpr int kMostTensors = 128;
constexpr int kLoads = 4;  // of each thread before it waits for the first

struct TensorList {
  const float* data[kMostTensors];
  std::int64_t count[kMostTensors];
  std::int32_t first_piece[kMostTensors + 1];  // ascending
  int tensors = 0;
};

std::int64_t pieces_of(std::span<const float> values) {
  return (std::ssize(values) + kPiece - 1) / kPiece;
}

// Thread 0 gets the sum.
template <int kBlockThreads>
__device__ __forceinline__ double block_sum(double sum) {
  __shared__ double warps[kBlockThreads / kWarpLanes];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpLanes == 0) warps[threadIdx.x / kWarpLanes] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return 0;
  sum = 0;
  for (const double warp : warps) sum += warp;
  return sum;
}

__device__ __forceinline__ double square(float value) {
  return double{value} * value;
}

__device__ __forceinline__ double sum_squares(const float* values, int count) {
  double sum = 0;
  int done = 0;
  if (reinterpret_cast<std::uintptr_t>(values) % sizeof(float4) == 0) {
    constexpr int kStep = kThreads * 4;
#pragma unroll kLoads
    for (int i = static_cast<int>(threadIdx.x) * 4; i + 4 <= count; i += kStep) {
      float held[4];
      load_vector<4>(values + i, held);
      for (const float value : held) sum = fma(double{value}, double{value}, sum);
    }
    done = count / 4 * 4;
  }
  for (int i = done + static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    sum += square(values[i]);
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_pieces(const __grid_constant__ TensorList list, double* sums) {
  start_successor();
  wait_for_predecessor();
  const int piece = static_cast<int>(blockIdx.x);
  int tensor = 0;
  for (int end = list.tensors; end - tensor > 1;) {
    const int middle = (tensor + end) / 2;
    (list.first_piece[middle] <= piece ? tensor : end) = middle;
  }
  const std::int64_t begin = (piece - list.first_piece[tensor]) * kPiece;
  const auto count = static_cast<int>(min(kPiece, list.count[tensor] - begin));
  const double sum = block_sum<kThreads>(sum_squares(list.data[tensor] + begin, count));
  if (threadIdx.x == 0) sums[piece] = sum;
}

__global__ void __launch_bounds__(kMostThreads)
    add_sums(const double* sums, std::int64_t count, double* norm) {
  start_successor();
  wait_for_predecessor();
  double sum = 0;
#pragma unroll 8
  for (std::int64_t i = threadIdx.x; i < count; i += kMostThreads) sum += sums[i];
  sum = block_sum<kMostThreads>(sum);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

// The first tensors of `rest`, as many as a list holds; `rest` is left with the others.
TensorList take(std::span<const std::span<const float>>& rest) {
  TensorList list;
  list.first_piece[0] = 0;
  for (; !rest.empty() && list.tensors < kMostTensors; rest = rest.subspan(1)) {
    if (rest.front().empty()) continue;
    const int at = list.tensors++;
    list.data[at] = rest.front().data();
    list.count[at] = std::ssize(rest.front());
    list.first_piece[at + 1] =
        list.first_piece[at] + static_cast<std::int32_t>(pieces_of(rest.front()));
  }
  return list;
}

}  // namespace

void global_norm_cuda(const GlobalNormArgs& args, Context& ctx) {
  std::int64_t pieces = 0;
  for (const std::span<const float> values : args.tensors) pieces += pieces_of(values);
  ArenaScope scope(ctx.workspace());
  auto* sums = scope.allocate<double>(pieces);
  double* next = sums;
  for (std::span<const std::span<const float>> rest = args.tensors; !rest.empty();) {
    const TensorList list = take(rest);
    const std::int32_t count = list.first_piece[list.tensors];
    if (count == 0) continue;
    launch_dependent("global_norm", sum_pieces, {grid_blocks(count), kThreads}, ctx, list, next);
    next += count;
  }
  launch_dependent("global_norm: sum", add_sums, {1, kMostThreads}, ctx, sums, pieces, args.norm);
}

}  // namespace mamba3
