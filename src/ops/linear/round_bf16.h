// Rows of floats rounded to bf16, as to_bf16 does.
#pragma once

#include <cstdint>

#include "mamba3/tensor.h"

namespace mamba3 {

void round_to_bf16(const float* values, std::int64_t count, Bf16* out);
// The rounded numbers as floats, for processors that multiply no bf16.
void round_through_bf16(const float* values, std::int64_t count, float* out);

}  // namespace mamba3
