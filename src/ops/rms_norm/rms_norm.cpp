#include "ops/rms_norm/rms_norm.h"

#include <cmath>

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/rms_norm/rms_norm_cpu.h"

namespace mamba3 {
namespace {

void check_rows(const char* name, const ConstMatrix& view, const RmsNormArgs& args) {
  check_input(view.shape == args.residual.shape, "rms_norm: ", name, " is ",
              shape_string(view.shape), " and residual ", shape_string(args.residual.shape),
              "; expected the same shape, [rows, d]");
  check_input(view.stride[1] == 1 || view.shape[1] <= 1, "rms_norm: the inner stride of ", name,
              " is ", view.stride[1], "; expected 1");
}

void check(const RmsNormArgs& args) {
  check_rows("residual", args.residual, args);
  check_rows("y", args.y, args);
  if (args.hidden.data != nullptr) check_rows("hidden", args.hidden, args);
  if (args.sum.data != nullptr) check_rows("sum", args.sum, args);
  check_input(args.sum.data == nullptr || args.hidden.data != nullptr,
              "rms_norm: a place for the sum was given and no hidden; expected both");
  check_input(args.residual.elements() == 0 || args.weight != nullptr,
              "rms_norm: no weight was given; expected ", args.residual.shape[1], " values");
  check_input(std::isfinite(args.eps) && args.eps >= 0, "rms_norm: eps is ", args.eps,
              "; expected a finite number of at least 0");
}

}  // namespace

void rms_norm(const RmsNormArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "rms_norm");
  check(args);
  if (args.residual.elements() == 0) return;
  if (ctx.gpu()) return rms_norm_cuda(args, ctx);
  rms_norm_cpu(args, ctx);
}

}  // namespace mamba3
