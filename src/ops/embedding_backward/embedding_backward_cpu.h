// Checked arguments in.
#pragma once

#include "ops/embedding_backward/embedding_backward.h"

namespace mamba3 {

std::size_t embedding_backward_workspace_bytes_cpu(const EmbeddingBackwardArgs& args);
void embedding_backward_cpu(const EmbeddingBackwardArgs& args, Context& ctx);

}  // namespace mamba3
