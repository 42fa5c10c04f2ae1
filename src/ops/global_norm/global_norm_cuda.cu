#include "core/check.h"
#include "ops/cuda_ops.h"

namespace mamba3 {

void global_norm_cuda(const GlobalNormArgs&, Context&) {
  fail(ErrorCode::kUnavailable, "global_norm runs on a CPU so far; use --device cpu");
}

}  // namespace mamba3
