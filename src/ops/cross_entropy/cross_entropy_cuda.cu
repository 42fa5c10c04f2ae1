#include "core/check.h"
#include "ops/cuda_ops.h"

namespace mamba3 {

void cross_entropy_cuda(const CrossEntropyArgs&, Context&) {
  fail(ErrorCode::kUnavailable, "cross_entropy runs on a CPU so far; use --device cpu");
}

}  // namespace mamba3
