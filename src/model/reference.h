// The whole model in double, one sequence, one token after the other: the oracle of prefill and
// step.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "mamba3/config.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// Logits [t, padded v] of a fresh sequence. Shares no code with the fast paths but the reading of
// stored numbers.
std::vector<double> reference_logits(const ModelConfig& config,
                                     const std::map<std::string, TensorRef>& tensors,
                                     std::span<const std::int32_t> ids);

}  // namespace mamba3
