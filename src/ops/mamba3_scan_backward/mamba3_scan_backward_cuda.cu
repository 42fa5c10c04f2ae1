#include "core/check.h"
#include "ops/cuda_ops.h"

namespace mamba3 {

void mamba3_scan_backward_cuda(const Mamba3ScanBackwardArgs&, Context&) {
  fail(ErrorCode::kUnavailable, "mamba3_scan_backward runs on a CPU so far; use --device cpu");
}

}  // namespace mamba3
