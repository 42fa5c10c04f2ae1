// Products of many rows on Hopper that do more than a plain one: fused_linear.h.
#pragma once

#include "ops/linear/fused_linear.h"

namespace mamba3 {

bool linear_tiles_takes(const FusedLinearArgs& args, const Context& ctx);
void linear_tiles_cuda(const FusedLinearArgs& args, Context& ctx);

}  // namespace mamba3
