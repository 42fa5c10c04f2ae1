// What Model::step_and_sample reads and writes.
#pragma once

#include <cstdint>

#include "mamba3/sampling.h"
#include "ops/sampling/sample_rows.h"

namespace mamba3 {

// Everything lies in the Context's memory, or what it can write; ids and slots have been checked.
struct SampledStep {
  std::int64_t rows = 0;
  std::int32_t* ids = nullptr;          // [rows] read, then replaced by what was sampled
  const std::int32_t* slots = nullptr;  // [rows]
  RowSampling* sampling = nullptr;      // [rows]
  SampledToken* out = nullptr;          // [rows]
};

}  // namespace mamba3
