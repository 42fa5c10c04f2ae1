// The two paths of linear. Arguments are checked already; rows, n and k are at least 1.
#pragma once

#include "ops/linear/linear.h"

namespace mamba3 {

std::size_t linear_skinny_workspace_bytes(const LinearArgs& args, const Context& ctx);
void linear_skinny(const LinearArgs& args, Context& ctx);

std::size_t linear_gemm_workspace_bytes(const LinearArgs& args, const Context& ctx);
void linear_gemm(const LinearArgs& args, Context& ctx);

}  // namespace mamba3
