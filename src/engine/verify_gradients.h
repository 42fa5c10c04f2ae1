// Gradients of golden files: `mamba3 verify --grad`.
#pragma once

#include "engine/golden.h"
#include "engine/verify.h"

namespace mamba3 {

// Adds a case for each gradient that the file holds; none if it holds none.
// In fp32 the ops' are held to the tolerance rule; the oracle always stands to its own.
void verify_gradients(const Golden& golden, const VerifyOptions& options, Context& ctx,
                      VerifyReport& report);

}  // namespace mamba3
