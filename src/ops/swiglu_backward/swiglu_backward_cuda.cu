#include "core/check.h"
#include "ops/cuda_ops.h"

namespace mamba3 {

void swiglu_backward_cuda(const SwigluBackwardArgs&, Context&) {
  fail(ErrorCode::kUnavailable, "swiglu_backward runs on a CPU so far; use --device cpu");
}

}  // namespace mamba3
