// A product of up to 16 rows, on Hopper, at the speed at which memory gives the weights; with what
// stands before and behind it in a block as part of it.
#pragma once

#include "ops/linear/fused_linear.h"

namespace mamba3 {

// bf16 weights, Compute::kBf16, 1 to 16 rows that begin on 16 bytes, k a multiple of 32 up to 4096;
// a norm of up to 8 rows where rows * k is at most 4096: with more a kernel of its own is faster.
bool linear_stream_takes(const FusedLinearArgs& args, const Context& ctx);

void linear_stream_cuda(const FusedLinearArgs& args, Context& ctx);

}  // namespace mamba3
