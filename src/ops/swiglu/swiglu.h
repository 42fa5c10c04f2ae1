// y = first half * silu(second half) of each row: what stands between fc1 and fc2.
#pragma once

#include "core/matrix.h"
#include "mamba3/context.h"

namespace mamba3 {

struct SwigluArgs {
  ConstMatrix h;  // [rows, 2 f]  bf16: on a GPU, y too
  Matrix y;       // [rows, f]  bf16: on a GPU
};

void swiglu(const SwigluArgs& args, Context& ctx);

}  // namespace mamba3
