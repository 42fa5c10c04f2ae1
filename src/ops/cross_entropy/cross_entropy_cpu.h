// Checked arguments in.
#pragma once

#include "ops/cross_entropy/cross_entropy.h"

namespace mamba3 {

std::size_t cross_entropy_workspace_bytes_cpu(const CrossEntropyArgs& args, const Context& ctx);
void cross_entropy_cpu(const CrossEntropyArgs& args, Context& ctx);

}  // namespace mamba3
