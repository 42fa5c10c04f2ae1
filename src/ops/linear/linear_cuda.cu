// kBf16 rounds x once. kF32 splits x into three bf16 numbers whose sum is x exactly, so that the
// products with bf16 weights are exact too; fp32 weights go through fp32 products.
#include <algorithm>

#include "core/arena.h"
#include "ops/cuda_ops.h"
#include "ops/linear/cublas_product.h"
#include "ops/linear/linear_batch_cuda.h"
#include "ops/linear/linear_skinny_cuda.h"
#include "ops/linear/linear_stream_cuda.h"
#include "ops/linear/linear_tiles_cuda.h"
#include "ops/linear/row_slices.h"
#include "ops/linear/split_bf16_cuda.h"

namespace mamba3 {
namespace {

// What products of one call have in common.
struct Products {
  const LinearArgs& args;
  void* workspace;
  Context& ctx;

  void add(const void* x, std::int64_t x_stride, const void* w, bool bf16, bool accumulate) const {
    const std::int64_t k = args.x.shape[1];
    const CublasSums sums = args.path == LinearPath::kGemm ? CublasSums::kWhole : CublasSums::kAny;
    cublas_product({x, x_stride, w, k, bf16, k, args.y, accumulate, sums}, workspace, ctx);
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
  const std::int64_t k = args.x.shape[1];
  ArenaScope scope(ctx.workspace());
  const Products products{args, scope.allocate<std::byte>(kCublasWorkspaceBytes), ctx};
  const std::int64_t x_stride = std::max(args.x.stride[0], k);
  const bool bf16_weights = args.w.dtype == DType::kBf16;
  if (!bf16_weights && args.compute == Compute::kF32) {
    return products.add(args.x.floats(), x_stride, args.w.data, false, args.accumulate);
  }
  const void* w = args.w.data;
  if (!bf16_weights) w = split_bf16(matrix_of(args.w), k, 1, scope, ctx).data;
  if (args.x.is_bf16()) return products.add(args.x.data, x_stride, w, true, args.accumulate);
  const int count = args.compute == Compute::kBf16 ? 1 : kExactParts;
  const Bf16Parts x = split_bf16(args.x, padded_bf16_stride(k), count, scope, ctx);
  // The smallest parts first: their sum is not lost beside the large ones.
  for (int i = count - 1; i >= 0; --i) {
    products.add(x.part(i), x.stride, w, true, args.accumulate || i + 1 < count);
  }
}

}  // namespace mamba3
