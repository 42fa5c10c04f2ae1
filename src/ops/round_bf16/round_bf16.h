// Contiguous fp32 numbers rounded to bf16, to nearest and ties to even: the copy of the weights
// that a training computes with, before the optimizer's first step keeps it.
#pragma once

#include <cstdint>

#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

struct RoundBf16Args {
  std::int64_t count = 0;
  const float* values = nullptr;  // [count]
  Bf16* rounded = nullptr;        // [count], assigned
};

void round_bf16(const RoundBf16Args& args, Context& ctx);

}  // namespace mamba3
