// Backward of swiglu, y = up silu(gate): with s = sigmoid(gate),
//   grad_up = grad_y gate s;   grad_gate = grad_y up s (1 + gate (1 - s))
#pragma once

#include "core/matrix.h"
#include "mamba3/context.h"

namespace mamba3 {

// On a CPU inside in double, each result is rounded once; on a GPU inside in fp32. All are fp32, or
// on a GPU all bf16.
struct SwigluBackwardArgs {
  ConstMatrix h;       // [rows, 2 f], what the forward pass read: up, then gate
  ConstMatrix grad_y;  // [rows, f]
  Matrix grad_h;       // [rows, 2 f], assigned; may be the memory of h
  // [rows, f], assigned: swiglu of h, bit for bit, which the gradient of fc2 reads. No data: not
  // wanted.
  Matrix y = {};
};

void swiglu_backward(const SwigluBackwardArgs& args, Context& ctx);

}  // namespace mamba3
