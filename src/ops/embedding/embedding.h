// Rows of the embedding table, widened to fp32.
#pragma once

#include <cstdint>
#include <span>

#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

struct EmbeddingArgs {
  std::span<const std::int32_t> ids;  // [rows], each in [0, table rows)
  TensorRef table;                    // [v, d] bf16 or f32
  TensorView<float, 2> y;             // [rows, d]
};

// An id outside the table is refused with its position and value; on a GPU the caller has checked.
void embedding(const EmbeddingArgs& args, Context& ctx);

}  // namespace mamba3
