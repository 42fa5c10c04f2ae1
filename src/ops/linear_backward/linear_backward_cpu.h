// Checked arguments in.
#pragma once

#include "ops/linear_backward/linear_backward.h"

namespace mamba3 {

std::size_t linear_backward_workspace_bytes_cpu(const LinearBackwardArgs& args, const Context& ctx);
void linear_backward_cpu(const LinearBackwardArgs& args, Context& ctx);

}  // namespace mamba3
