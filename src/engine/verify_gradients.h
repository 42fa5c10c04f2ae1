// Gradients of golden files: `mamba3 verify --grad`.
#pragma once

#include "engine/golden.h"
#include "engine/verify.h"

namespace mamba3 {

// Adds a case for each gradient that the file holds; none if it holds none.
void verify_gradients(const Golden& golden, VerifyReport& report);

}  // namespace mamba3
