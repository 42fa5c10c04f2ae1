#include "core/check.h"
#include "ops/cuda_ops.h"

namespace mamba3 {

void embedding_backward_cuda(const EmbeddingBackwardArgs&, Context&) {
  fail(ErrorCode::kUnavailable, "embedding_backward runs on a CPU so far; use --device cpu");
}

}  // namespace mamba3
