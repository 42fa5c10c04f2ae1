#include "ops/swiglu_backward/swiglu_backward.h"

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/swiglu_backward/swiglu_backward_cpu.h"

namespace mamba3 {
namespace {

void check_rows(const char* name, const ConstMatrix& view, DType type) {
  check_input(view.stride[1] == 1 || view.shape[1] <= 1, "swiglu_backward: the inner stride of ",
              name, " is ", view.stride[1], "; expected 1");
  check_input(view.dtype == type, "swiglu_backward: ", name, " is ", dtype_name(view.dtype),
              "; expected ", dtype_name(type));
}

void check(const SwigluBackwardArgs& args, bool on_gpu) {
  check_input(args.h.shape[0] == args.grad_y.shape[0] &&
                  args.h.shape[1] == 2 * args.grad_y.shape[1] && args.grad_h.shape == args.h.shape,
              "swiglu_backward: h is ", shape_string(args.h.shape), ", grad_y ",
              shape_string(args.grad_y.shape), ", grad_h ", shape_string(args.grad_h.shape),
              "; expected [rows, 2 f], [rows, f], [rows, 2 f]");
  const DType type = on_gpu && args.h.is_bf16() ? DType::kBf16 : DType::kF32;
  check_rows("h", args.h, type);
  check_rows("grad_y", args.grad_y, type);
  check_rows("grad_h", args.grad_h, type);
  if (args.y.data == nullptr) return;
  check_input(args.y.shape == args.grad_y.shape, "swiglu_backward: y is ",
              shape_string(args.y.shape), " and grad_y ", shape_string(args.grad_y.shape),
              "; expected the same shape, [rows, f]");
  check_rows("y", args.y, type);
}

}  // namespace

void swiglu_backward(const SwigluBackwardArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "swiglu_backward");
  check(args, ctx.gpu() != nullptr);
  if (args.grad_y.elements() == 0) return;
  if (ctx.gpu()) return swiglu_backward_cuda(args, ctx);
  swiglu_backward_cpu(args, ctx);
}

}  // namespace mamba3
