// The gradient of token_scalars(): from what a token's numbers do to the loss to what its raw
// numbers do.
#pragma once

#include "ops/mamba3_common/token_scalars.h"

namespace mamba3 {

// With respect to the fields of TokenScalars, each as if the others did not hang on it.
struct TokenScalarGradients {
  double turning = 0;  // through the phases
  double log_decay = 0;
  double now = 0;
  double carry = 0;
};

struct RawScalarGradients {
  float dt_raw = 0;  // and of dt_bias
  float decay_raw = 0;
  float trap_raw = 0;
};

RawScalarGradients token_scalars_backward(const Mamba3Dims& dims, float dt_raw, float dt_bias,
                                          float decay_raw, float trap_raw,
                                          const TokenScalars& scalars,
                                          const TokenScalarGradients& grads);

}  // namespace mamba3
