// The whole model, one sequence, one token after the other. In double: the oracle of prefill and
// step.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "mamba3/config.h"
#include "mamba3/tensor.h"
#include "ops/mamba3_scan/mamba3_authors_ref.h"

namespace mamba3 {

// Logits [t, padded v] of a fresh sequence. Shares no code with the fast paths but the reading of
// stored numbers.
std::vector<double> reference_logits(const ModelConfig& config,
                                     const std::map<std::string, TensorRef>& tensors,
                                     std::span<const std::int32_t> ids);

// Which inputs are rounded to bf16, as the paths do that the plain run stands beside.
struct PlainRounding {
  bool linears = false;
  bool scan = false;
};
// The same in floats: what the tolerance rule measures the fast paths' errors by.
std::vector<float> plain_logits(const ModelConfig& config,
                                const std::map<std::string, TensorRef>& tensors,
                                std::span<const std::int32_t> ids, PlainRounding rounding);
// In floats, rounded where the authors' package rounds: every linear takes and gives bf16, and the
// mixers run as their kernels do. The logits themselves are left as they are.
std::vector<float> authors_logits(const ModelConfig& config,
                                  const std::map<std::string, TensorRef>& tensors,
                                  std::span<const std::int32_t> ids, AuthorsPath path);

}  // namespace mamba3
