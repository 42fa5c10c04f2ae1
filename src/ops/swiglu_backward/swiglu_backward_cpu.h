// Checked arguments in.
#pragma once

#include "ops/swiglu_backward/swiglu_backward.h"

namespace mamba3 {

void swiglu_backward_cpu(const SwigluBackwardArgs& args, Context& ctx);

}  // namespace mamba3
