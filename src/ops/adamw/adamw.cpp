#include "ops/adamw/adamw.h"

#include <cmath>

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/adamw/adamw_cpu.h"
#include "ops/cuda_ops.h"

namespace mamba3 {
namespace {

void check_number(const char* name, double value, double below) {
  check_input(std::isfinite(value) && value >= 0 && value < below, "adamw: ", name, " is ", value,
              "; expected a finite number of at least 0", below <= 1 ? " and below 1" : "");
}

void check(const AdamwArgs& args) {
  check_input(args.count == 0 || (args.weights != nullptr && args.grad != nullptr &&
                                  args.first != nullptr && args.second != nullptr),
              "adamw: weights, grad or moments are missing; expected ", args.count,
              " values of each");
  check_input(args.step >= 1, "adamw: step is ", args.step, "; expected at least 1");
  check_number("rate", args.rate, HUGE_VAL);
  check_number("beta1", args.beta1, 1);
  check_number("beta2", args.beta2, 1);
  check_number("eps", args.eps, HUGE_VAL);
  check_number("decay", args.decay, HUGE_VAL);
  check_input(std::isfinite(args.grad_scale), "adamw: grad_scale is ", args.grad_scale,
              "; expected a finite number");
}

}  // namespace

void adamw(const AdamwArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "adamw");
  check(args);
  if (ctx.gpu()) return adamw_cuda(args, ctx);
  adamw_cpu(args, ctx);
}

}  // namespace mamba3
