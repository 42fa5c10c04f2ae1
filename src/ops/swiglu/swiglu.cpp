#include "ops/swiglu/swiglu.h"

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/swiglu/swiglu_cpu.h"

namespace mamba3 {
namespace {

void check(const SwigluArgs& args) {
  check_input(args.h.shape[0] == args.y.shape[0] && args.h.shape[1] == 2 * args.y.shape[1],
              "swiglu: h is ", shape_string(args.h.shape), " and y ", shape_string(args.y.shape),
              "; expected [rows, 2 f] and [rows, f]");
  check_input(!args.h.is_bf16() || args.y.is_bf16(),
              "swiglu: h is bf16 and y fp32; expected the same type, or y rounded to bf16");
  check_input(args.h.stride[1] == 1 || args.h.shape[1] <= 1, "swiglu: the inner stride of h is ",
              args.h.stride[1], "; expected 1");
  check_input(args.y.stride[1] == 1 || args.y.shape[1] <= 1, "swiglu: the inner stride of y is ",
              args.y.stride[1], "; expected 1");
}

}  // namespace

void swiglu(const SwigluArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "swiglu");
  check(args);
  if (args.y.elements() == 0) return;
  if (ctx.gpu()) return swiglu_cuda(args, ctx);
  swiglu_cpu(args, ctx);
}

}  // namespace mamba3
