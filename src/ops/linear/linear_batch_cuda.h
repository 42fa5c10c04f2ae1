// Products of a step of a few dozen sequences on Hopper.
#pragma once

#include "ops/linear/fused_linear.h"

namespace mamba3 {

bool linear_batch_takes(const FusedLinearArgs& args, const Context& ctx);
void linear_batch_cuda(const FusedLinearArgs& args, Context& ctx);

}  // namespace mamba3
