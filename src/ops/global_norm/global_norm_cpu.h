// Checked arguments in.
#pragma once

#include "ops/global_norm/global_norm.h"

namespace mamba3 {

void global_norm_cpu(const GlobalNormArgs& args, Context& ctx);

}  // namespace mamba3
