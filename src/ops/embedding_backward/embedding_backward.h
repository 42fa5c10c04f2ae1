// Backward of embedding: the gradient of each row joins that of its id.
#pragma once

#include <cstdint>
#include <span>

#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// On a CPU rows of the same id are added in their order, whatever the number of threads, and an id
// outside the table is refused with its position and value. On a GPU, where ids cannot be looked at
// beforehand, the rows of such an id are left out; an id's rows are added in their order too, but
// in pieces whose places depend on all ids: the same ids give the same bits.
struct EmbeddingBackwardArgs {
  std::span<const std::int32_t> ids;  // [rows], each in [0, v)
  TensorView<const float, 2> grad_y;  // [rows, d]
  TensorView<float, 2> grad_table;    // [v, d], added to
};

std::size_t embedding_backward_workspace_bytes(const EmbeddingBackwardArgs& args,
                                               const Context& ctx);
void embedding_backward(const EmbeddingBackwardArgs& args, Context& ctx);

}  // namespace mamba3
