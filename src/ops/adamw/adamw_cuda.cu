#include "core/check.h"
#include "ops/cuda_ops.h"

namespace mamba3 {

void adamw_cuda(const AdamwArgs&, Context&) {
  fail(ErrorCode::kUnavailable, "adamw runs on a CPU so far; use --device cpu");
}

}  // namespace mamba3
