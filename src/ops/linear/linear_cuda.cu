// kBf16 rounds x once. kF32 splits x into three bf16 numbers whose sum is x exactly, so that the
// products with bf16 weights are exact too; fp32 weights go through fp32 products.
#include <cuda_bf16.h>

#include <algorithm>

#include "core/arena.h"
#include "device/dependent_launch.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"
#include "ops/linear/cublas_product.h"
#include "ops/linear/linear_batch_cuda.h"
#include "ops/linear/linear_skinny_cuda.h"
#include "ops/linear/linear_stream_cuda.h"
#include "ops/linear/linear_tiles_cuda.h"
#include "ops/linear/row_slices.h"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;
constexpr int kSplits = 3;  // bf16 numbers that hold all 24 bits of a float

// Of each of `rows` x `k` floats the first `splits` bf16 parts: part i is what the parts before it
// leave. Part i of an element is i * rows * stride further.
__global__ void split_bf16(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t k,
                           std::int64_t stride, int splits, __nv_bfloat16* out) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= k) return;
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float rest = x[row * x_stride + column];
    for (int i = 0; i < splits; ++i) {
      const __nv_bfloat16 part = __float2bfloat16_rn(rest);
      out[(i * rows + row) * stride + column] = part;
      rest = isfinite(rest) ? rest - __bfloat162float(part) : 0.0f;
    }
  }
}

const __nv_bfloat16* split(const float* x, std::int64_t x_stride, std::int64_t rows, std::int64_t k,
                           std::int64_t stride, int splits, ArenaScope& scope, Context& ctx) {
  auto* out = scope.allocate<__nv_bfloat16>(splits * rows * stride);
  const dim3 grid(static_cast<unsigned>((k + kThreads - 1) / kThreads),
                  static_cast<unsigned>(std::min<std::int64_t>(rows, 65535)));
  launch_dependent("linear: rounding", split_bf16, {grid, kThreads}, ctx, x, x_stride, rows, k,
                   stride, splits, out);
  return out;
}

std::int64_t padded_stride(std::int64_t k) {
  return (k + 7) / 8 * 8;  // rows begin on 16 bytes
}

// What products of one call have in common.
struct Products {
  const LinearArgs& args;
  void* workspace;
  Context& ctx;

  void add(const void* x, std::int64_t x_stride, const void* w, bool bf16, bool accumulate) const {
    cublas_product(
        {x, x_stride, w, bf16, args.x.shape[1], args.y, accumulate, args.path == LinearPath::kGemm},
        workspace, ctx);
  }
};

bool is_skinny(const LinearArgs& args) {
  return args.path != LinearPath::kGemm && args.x.shape[0] <= kMostSkinnyRows &&
         !args.x.is_bf16() && !args.y.is_bf16();
}

}  // namespace

bool fused_linear_takes_cuda(const FusedLinearArgs& args, const Context& ctx) {
  return linear_stream_takes(args, ctx) || linear_batch_takes(args, ctx) ||
         linear_tiles_takes(args, ctx);
}

void fused_linear_cuda(const FusedLinearArgs& args, Context& ctx) {
  if (linear_stream_takes(args, ctx)) return linear_stream_cuda(args, ctx);
  if (linear_batch_takes(args, ctx)) return linear_batch_cuda(args, ctx);
  linear_tiles_cuda(args, ctx);
}

void linear_cuda(const LinearArgs& args, Context& ctx) {
  FusedLinearArgs fused;
  fused.x = args.x;
  fused.w = args.w;
  fused.y = args.y;
  fused.accumulate = args.accumulate;
  fused.compute = args.compute;
  fused.path = args.path;
  if (fused_linear_takes_cuda(fused, ctx)) return fused_linear_cuda(fused, ctx);
  if (is_skinny(args)) return linear_skinny_cuda(args, ctx);
  const std::int64_t rows = args.x.shape[0], k = args.x.shape[1], n = args.w.shape[0];
  ArenaScope scope(ctx.workspace());
  const Products products{args, scope.allocate<std::byte>(kCublasWorkspaceBytes), ctx};
  const std::int64_t x_stride = std::max(args.x.stride[0], k);
  const bool bf16_weights = args.w.dtype == DType::kBf16;
  if (!bf16_weights && args.compute == Compute::kF32) {
    return products.add(args.x.floats(), x_stride, args.w.data, false, args.accumulate);
  }
  const void* w = args.w.data;
  if (!bf16_weights) {
    w = split(reinterpret_cast<const float*>(args.w.data), k, n, k, k, 1, scope, ctx);
  }
  if (args.x.is_bf16()) return products.add(args.x.data, x_stride, w, true, args.accumulate);
  const int splits = args.compute == Compute::kBf16 ? 1 : kSplits;
  const std::int64_t stride = padded_stride(k);
  const __nv_bfloat16* x =
      split(args.x.floats(), args.x.stride[0], rows, k, stride, splits, scope, ctx);
  // The smallest parts first: their sum is not lost beside the large ones.
  for (int i = splits - 1; i >= 0; --i) {
    products.add(x + i * rows * stride, stride, w, true, args.accumulate || i + 1 < splits);
  }
}

}  // namespace mamba3
