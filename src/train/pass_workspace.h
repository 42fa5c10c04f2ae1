// What a pass takes of a Context's workspace with the ops that it calls.
#pragma once

#include <cstddef>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "ops/linear/linear.h"
#include "train/pass_memory.h"

namespace mamba3 {

// At most; on a CPU of common numbers of threads.
std::size_t pass_workspace_bytes(const ModelConfig& config, const PassShape& shape, Compute compute,
                                 const Context& ctx);

}  // namespace mamba3
