#include "ops/linear/linear.h"

#include <algorithm>

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/linear/linear_paths.h"
#include "ops/linear/row_slices.h"

namespace mamba3 {
namespace {

void check(const LinearArgs& args) {
  const auto& w = args.w;
  check_input(w.shape.size() == 2, "linear: the weights have shape ", shape_string(w.shape),
              "; expected two dimensions, [n, k]");
  check_input(w.dtype == DType::kBf16 || w.dtype == DType::kF32, "linear: the weights are ",
              dtype_name(w.dtype), "; expected BF16 or F32; convert the checkpoint");
  check_input(args.x.shape[1] == w.shape[1] && args.y.shape[1] == w.shape[0] &&
                  args.x.shape[0] == args.y.shape[0],
              "linear: x is ", shape_string(args.x.shape), ", the weights ", shape_string(w.shape),
              ", y ", shape_string(args.y.shape), "; expected [rows, k], [n, k], [rows, n]");
  check_input(args.x.stride[1] == 1 || args.x.shape[1] <= 1, "linear: the inner stride of x is ",
              args.x.stride[1], "; expected 1");
  check_input(args.y.stride[1] == 1 || args.y.shape[1] <= 1, "linear: the inner stride of y is ",
              args.y.stride[1], "; expected 1");
  check_input(args.x.shape[0] <= 1 || args.x.stride[0] >= args.x.shape[1],
              "linear: the rows of x are ", args.x.stride[0], " elements apart and ",
              args.x.shape[1], " long; expected rows that do not overlap");
  check_input(args.y.shape[0] <= 1 || args.y.stride[0] >= args.y.shape[1],
              "linear: the rows of y are ", args.y.stride[0], " elements apart and ",
              args.y.shape[1], " long; expected rows that do not overlap");
}

// What only a GPU does.
void check_device(const LinearArgs& args, const Context& ctx) {
  if (!args.x.is_bf16() && !args.y.is_bf16() && !args.accumulate) return;
  if (!ctx.gpu()) {
    fail(ErrorCode::kUnavailable,
         "linear: bf16 activations or a sum onto y on a CPU; expected fp32 and a plain product");
  }
  check_input(!args.x.is_bf16() || args.compute == Compute::kBf16,
              "linear: x is bf16 in a product in fp32; expected fp32");
  check_input(!args.y.is_bf16() || (args.compute == Compute::kBf16 && !args.accumulate),
              "linear: y is bf16 where sums of fp32 are wanted; expected fp32");
}

bool is_empty(const LinearArgs& args) {
  return args.y.shape[0] == 0 || args.y.shape[1] == 0;
}

bool is_skinny(const LinearArgs& args) {
  if (args.path == LinearPath::kAuto) return args.x.shape[0] <= kMostSkinnyRows;
  return args.path == LinearPath::kSkinny;
}

}  // namespace

std::size_t linear_workspace_bytes(const LinearArgs& args, const Context& ctx) {
  check(args);
  if (is_empty(args) || args.x.shape[1] == 0) return 0;
  return is_skinny(args) ? linear_skinny_workspace_bytes(args, ctx)
                         : linear_gemm_workspace_bytes(args, ctx);
}

void linear(const LinearArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "linear");
  check(args);
  check_device(args, ctx);
  if (is_empty(args) || done_in_slices(args, ctx, linear)) return;
  if (ctx.gpu()) return linear_cuda(args, ctx);
  if (args.x.shape[1] == 0) {  // a sum of nothing
    for (std::int64_t row = 0; row < args.y.shape[0]; ++row) {
      std::fill_n(args.y.row(row), args.y.shape[1], 0.0f);
    }
    return;
  }
  if (is_skinny(args)) {
    linear_skinny(args, ctx);
  } else {
    linear_gemm(args, ctx);
  }
}

}  // namespace mamba3
