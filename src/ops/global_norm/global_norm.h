// The Euclidean norm of many tensors together, as gradients are clipped by it.
#pragma once

#include <span>

#include "mamba3/context.h"

namespace mamba3 {

// Summed in double, in pieces and an order that depend on the sizes alone: the same bits on any
// number of threads. NaN or infinite when an element is.
struct GlobalNormArgs {
  std::span<const std::span<const float>> tensors;
  double* norm = nullptr;  // assigned
};

void global_norm(const GlobalNormArgs& args, Context& ctx);

}  // namespace mamba3
