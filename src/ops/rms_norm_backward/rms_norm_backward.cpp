#include "ops/rms_norm_backward/rms_norm_backward.h"

#include <cmath>

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/rms_norm_backward/rms_norm_backward_cpu.h"

namespace mamba3 {
namespace {

void check_rows(const char* name, const ConstMatrix& view, const RmsNormBackwardArgs& args) {
  check_input(view.shape == args.residual.shape, "rms_norm_backward: ", name, " is ",
              shape_string(view.shape), " and residual ", shape_string(args.residual.shape),
              "; expected the same shape, [rows, d]");
  check_input(view.stride[1] == 1 || view.shape[1] <= 1, "rms_norm_backward: the inner stride of ",
              name, " is ", view.stride[1], "; expected 1");
}

void check_type(const char* name, DType found, DType expected) {
  check_input(found == expected, "rms_norm_backward: ", name, " is ", dtype_name(found),
              "; expected ", dtype_name(expected));
}

// BF16 is for a GPU alone.
void check(const RmsNormBackwardArgs& args, bool on_gpu) {
  check_rows("residual", args.residual, args);
  check_rows("grad_y", args.grad_y, args);
  check_rows("grad_residual", args.grad_residual, args);
  if (!on_gpu || !args.grad_y.is_bf16()) check_type("grad_y", args.grad_y.dtype, DType::kF32);
  if (args.rounded.data != nullptr) {
    check_rows("rounded", args.rounded, args);
    check_type("rounded", args.rounded.dtype, DType::kBf16);
    check_input(on_gpu, "rms_norm_backward: a rounded gradient is wanted; a CPU has none");
  }
  check_input(args.residual.elements() == 0 || args.weight != nullptr,
              "rms_norm_backward: no weight was given; expected ", args.residual.shape[1],
              " values");
  check_input(std::isfinite(args.eps) && args.eps >= 0, "rms_norm_backward: eps is ", args.eps,
              "; expected a finite number of at least 0");
}

}  // namespace

std::size_t rms_norm_backward_workspace_bytes(const RmsNormBackwardArgs& args, const Context& ctx) {
  check(args, ctx.gpu() != nullptr);
  return ctx.gpu() ? rms_norm_backward_workspace_bytes_cuda(args)
                   : rms_norm_backward_workspace_bytes_cpu(args);
}

void rms_norm_backward(const RmsNormBackwardArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "rms_norm_backward");
  check(args, ctx.gpu() != nullptr);
  if (args.residual.elements() == 0) return;
  if (ctx.gpu()) return rms_norm_backward_cuda(args, ctx);
  rms_norm_backward_cpu(args, ctx);
}

}  // namespace mamba3
