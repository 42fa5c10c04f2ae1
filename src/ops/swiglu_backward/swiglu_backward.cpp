#include "ops/swiglu_backward/swiglu_backward.h"

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/swiglu_backward/swiglu_backward_cpu.h"

namespace mamba3 {
namespace {

void check_rows(const char* name, const ConstMatrix& view) {
  check_input(view.stride[1] == 1 || view.shape[1] <= 1, "swiglu_backward: the inner stride of ",
              name, " is ", view.stride[1], "; expected 1");
  check_input(view.dtype == DType::kF32, "swiglu_backward: ", name, " is ", dtype_name(view.dtype),
              "; expected F32");
}

void check(const SwigluBackwardArgs& args) {
  check_input(args.h.shape[0] == args.grad_y.shape[0] &&
                  args.h.shape[1] == 2 * args.grad_y.shape[1] && args.grad_h.shape == args.h.shape,
              "swiglu_backward: h is ", shape_string(args.h.shape), ", grad_y ",
              shape_string(args.grad_y.shape), ", grad_h ", shape_string(args.grad_h.shape),
              "; expected [rows, 2 f], [rows, f], [rows, 2 f]");
  check_rows("h", args.h);
  check_rows("grad_y", args.grad_y);
  check_rows("grad_h", args.grad_h);
}

}  // namespace

void swiglu_backward(const SwigluBackwardArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "swiglu_backward");
  check(args);
  if (ctx.gpu()) return swiglu_backward_cuda(args, ctx);
  if (args.grad_y.elements() == 0) return;
  swiglu_backward_cpu(args, ctx);
}

}  // namespace mamba3
