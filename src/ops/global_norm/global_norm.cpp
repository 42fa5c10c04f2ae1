#include "ops/global_norm/global_norm.h"

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"
#include "ops/global_norm/global_norm_cpu.h"

namespace mamba3 {

void global_norm(const GlobalNormArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "global_norm");
  check_input(args.norm != nullptr, "global_norm: no place for the norm was given");
  if (ctx.gpu()) return global_norm_cuda(args, ctx);
  global_norm_cpu(args, ctx);
}

}  // namespace mamba3
