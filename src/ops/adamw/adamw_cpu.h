// Checked arguments in.
#pragma once

#include "ops/adamw/adamw.h"

namespace mamba3 {

void adamw_cpu(const AdamwArgs& args, Context& ctx);

}  // namespace mamba3
