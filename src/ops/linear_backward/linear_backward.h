// Backward of y = x w^T: the gradients of x and of the weights.
#pragma once

#include "core/matrix.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"
#include "ops/linear/linear.h"

namespace mamba3 {

// kBf16 rounds x, w and grad_y to bf16, as the forward pass rounds its inputs; sums are fp32 in
// both. On a CPU an element of grad_x is summed over n, one of grad_w over the rows, each in 384
// neighbours at a time and the pieces in order. So bits depend neither on the number of threads
// nor, of a row of grad_x, on the other rows. On a GPU cuBLASLt's order hangs on the shapes, the
// number of rows too: equal calls give equal bits. There x, grad_y and grad_x may be bf16 with
// kBf16: the first two are taken as they are, the last is rounded once.
//
// Behind n, grad_y may have columns of zeros, which change no gradient: a GPU's best bf16 kernels
// take rows of whole 16 bytes only, and columns up to the next multiple of 8 bring both products to
// them.
struct LinearBackwardArgs {
  ConstMatrix x;                // [rows, k]; not read without grad_w
  TensorRef w;                  // [n, k] bf16 or f32, contiguous; data is not read without grad_x
  ConstMatrix grad_y;           // [rows, n or more]
  Matrix grad_x;                // [rows, k], assigned; no data: not wanted. No memory of the inputs
  TensorView<float, 2> grad_w;  // [n, k], added to; no data: not wanted
  Compute compute = Compute::kF32;
  bool accumulate_w = true;  // without, grad_w is assigned: the first of several batches
};

std::size_t linear_backward_workspace_bytes(const LinearBackwardArgs& args, const Context& ctx);
void linear_backward(const LinearBackwardArgs& args, Context& ctx);

}  // namespace mamba3
