// Checked arguments in.
#pragma once

#include "ops/swiglu/swiglu.h"

namespace mamba3 {

void swiglu_cpu(const SwigluArgs& args, Context& ctx);

}  // namespace mamba3
