// The arithmetic of training, for figures of speed.
#pragma once

#include "mamba3/config.h"

namespace mamba3 {

// Floating-point operations of one token's pass forward and back, a multiplication and an addition
// being two: 6 for each parameter of a matrix product (2 forward, 2 for the gradient of what it
// read, 2 for that of its weights), which in_proj, out_proj, fc1, fc2 and the head are and the
// embedding is not; and 3 times the recurrence as it is defined, 4 n p for each layer, head and
// rank: an outer product enters the state and is read out of it. What is computed again, and what a
// scan in chunks does beyond the recurrence, is not counted.
double training_flops_per_token(const ModelConfig& config);

}  // namespace mamba3
