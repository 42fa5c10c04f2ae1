// Checked arguments in.
#pragma once

#include "ops/embedding/embedding.h"

namespace mamba3 {

void embedding_cpu(const EmbeddingArgs& args, Context& ctx);

}  // namespace mamba3
