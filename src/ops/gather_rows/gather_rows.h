// Some rows of a matrix, side by side: those whose logits are wanted.
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"
#include "mamba3/context.h"

namespace mamba3 {

struct GatherRowsArgs {
  ConstMatrix x;                       // [rows, d]  bf16, on a GPU: an even d and even strides
  std::span<const std::int64_t> rows;  // [m], each in [0, rows of x)
  Matrix y;                            // [m, d]     of the same type
};

void gather_rows(const GatherRowsArgs& args, Context& ctx);

}  // namespace mamba3
