// The oracle: one element at a time, in double.
#pragma once

#include <vector>

#include "ops/embedding/embedding.h"

namespace mamba3 {

std::vector<double> embedding_ref(const EmbeddingArgs& args);  // [rows, d]

}  // namespace mamba3
