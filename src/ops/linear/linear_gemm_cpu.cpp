// Many rows.
#include "ops/linear/linear_paths.h"

namespace mamba3 {

std::size_t linear_gemm_workspace_bytes(const LinearArgs& args, const Context& ctx) {
  return linear_skinny_workspace_bytes(args, ctx);
}

void linear_gemm(const LinearArgs& args, Context& ctx) {
  linear_skinny(args, ctx);
}

}  // namespace mamba3
