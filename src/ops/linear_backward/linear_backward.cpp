#include "ops/linear_backward/linear_backward.h"

#include <algorithm>

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/linear_backward/linear_backward_cpu.h"

namespace mamba3 {
namespace {

// bf16: where a GPU's tensor cores take or give it.
void check_rows(const char* name, const ConstMatrix& view, std::int64_t rows, std::int64_t columns,
                bool bf16) {
  check_input(view.shape[0] == rows && view.shape[1] == columns, "linear_backward: ", name, " is ",
              shape_string(view.shape), "; expected [", rows, ", ", columns, "]");
  check_input(view.stride[1] == 1 || columns <= 1, "linear_backward: the inner stride of ", name,
              " is ", view.stride[1], "; expected 1");
  check_input(rows <= 1 || view.stride[0] >= columns, "linear_backward: the rows of ", name,
              " are ", view.stride[0], " elements apart and ", columns,
              " long; expected rows that do not overlap");
  check_input(view.dtype == DType::kF32 || (bf16 && view.is_bf16()), "linear_backward: ", name,
              " is ", dtype_name(view.dtype), "; expected F32",
              bf16 ? " or BF16" : "; BF16 is for a GPU and products in bf16");
}

void check(const LinearBackwardArgs& args, const Context& ctx) {
  const TensorRef& w = args.w;
  check_input(w.shape.size() == 2, "linear_backward: the weights have shape ",
              shape_string(w.shape), "; expected two dimensions, [n, k]");
  check_input(w.dtype == DType::kBf16 || w.dtype == DType::kF32,
              "linear_backward: the weights are ", dtype_name(w.dtype),
              "; expected BF16 or F32; convert the checkpoint");
  const std::int64_t rows = args.grad_y.shape[0], n = w.shape[0], k = w.shape[1];
  const bool bf16 = ctx.gpu() && args.compute == Compute::kBf16;
  check_rows("grad_y", args.grad_y, rows, std::max(n, args.grad_y.shape[1]), bf16);
  if (args.grad_x.data != nullptr) check_rows("grad_x", args.grad_x, rows, k, bf16);
  if (args.grad_w.data == nullptr) return;
  check_rows("x", args.x, rows, k, bf16);
  check_rows("grad_w", args.grad_w, n, k, false);
}

}  // namespace

std::size_t linear_backward_workspace_bytes(const LinearBackwardArgs& args, const Context& ctx) {
  check(args, ctx);
  if (ctx.gpu()) return linear_backward_workspace_bytes_cuda(args);
  return linear_backward_workspace_bytes_cpu(args, ctx);
}

void linear_backward(const LinearBackwardArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "linear_backward");
  check(args, ctx);
  if (ctx.gpu()) return linear_backward_cuda(args, ctx);
  linear_backward_cpu(args, ctx);
}

}  // namespace mamba3
