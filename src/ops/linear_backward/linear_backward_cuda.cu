#include "core/check.h"
#include "ops/cuda_ops.h"

namespace mamba3 {

void linear_backward_cuda(const LinearBackwardArgs&, Context&) {
  fail(ErrorCode::kUnavailable, "linear_backward runs on a CPU so far; use --device cpu");
}

}  // namespace mamba3
