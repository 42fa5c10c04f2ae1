// Checked arguments in.
#pragma once

#include "ops/rms_norm/rms_norm.h"

namespace mamba3 {

void rms_norm_cpu(const RmsNormArgs& args, Context& ctx);

}  // namespace mamba3
