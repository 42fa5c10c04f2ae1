// What one token does to one head's state, as numbers: the part of the recurrence that every path
// (chunked scan, step) computes in the same way, in double, so that phases and decays agree bit for
// bit. The vector part (norm, bias, rotation, gate) is mamba3_token-inl.h.
#pragma once

#include <cstdint>

#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

struct TokenScalars {
  double dt = 0;         // softplus(dt_raw + dt_bias)
  double turning = 0;    // what phases move by: dt; 1 where their steps are fixed
  double log_decay = 0;  // a * dt, at most 0; alpha = exp(log_decay)
  double now = 0;        // gamma = lam * dt: the weight of this token's outer product
  double carry = 0;      // (1 - lam) * dt: that of the previous token's, before this token's decay,
                         // so beta = carry * alpha
};

TokenScalars token_scalars(const Mamba3Dims& dims, float dt_raw, float dt_bias, float decay_raw,
                           float trap_raw);

}  // namespace mamba3
