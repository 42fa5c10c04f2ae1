// Some rows of a matrix, side by side: those whose logits are wanted.
#pragma once

#include <cstdint>
#include <span>

#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

struct GatherRowsArgs {
  TensorView<const float, 2> x;        // [rows, d]
  std::span<const std::int64_t> rows;  // [m], each in [0, rows of x)
  TensorView<float, 2> y;              // [m, d]
};

void gather_rows(const GatherRowsArgs& args, Context& ctx);

}  // namespace mamba3
