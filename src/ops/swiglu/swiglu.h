// y = first half * silu(second half) of each row: what stands between fc1 and fc2.
#pragma once

#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

struct SwigluArgs {
  TensorView<const float, 2> h;  // [rows, 2 f]
  TensorView<float, 2> y;        // [rows, f]
};

void swiglu(const SwigluArgs& args, Context& ctx);

}  // namespace mamba3
