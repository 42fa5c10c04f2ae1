// For ops that have no kernel for a GPU yet.
#pragma once

#include "core/check.h"
#include "mamba3/context.h"

namespace mamba3 {

inline void refuse_gpu(const char* op, const Context& ctx) {
  if (ctx.gpu()) fail(ErrorCode::kUnavailable, op, " runs on a CPU so far; use --device cpu");
}

}  // namespace mamba3
