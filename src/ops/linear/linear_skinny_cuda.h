// A product with few rows, which reads the weights once for every eight of them.
#pragma once

#include "ops/linear/linear.h"

namespace mamba3 {

void linear_skinny_cuda(const LinearArgs& args, Context& ctx);

}  // namespace mamba3
