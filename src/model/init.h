// Random weights as the authors initialise them (docs/SEMANTICS.md).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"

namespace mamba3 {

struct InitialTensors {
  std::map<std::string, TensorRef> tensors;
  std::shared_ptr<const void> memory;  // what they point into
};

// Matrices and norms in `dtype` (bf16 or fp32); dt_bias, D, B_bias, C_bias and mimo_* always in
// fp32, as the package stores them. The same seed gives the same bits on any number of threads.
InitialTensors init_tensors(const ModelConfig& config, DType dtype, std::uint64_t seed,
                            Context& ctx);

}  // namespace mamba3
