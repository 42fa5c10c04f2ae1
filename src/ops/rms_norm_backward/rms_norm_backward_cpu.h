// Checked arguments in.
#pragma once

#include "ops/rms_norm_backward/rms_norm_backward.h"

namespace mamba3 {

std::size_t rms_norm_backward_workspace_bytes_cpu(const RmsNormBackwardArgs& args);
void rms_norm_backward_cpu(const RmsNormBackwardArgs& args, Context& ctx);

}  // namespace mamba3
