// Inside of StatePool: one block of memory per slot, cut into layers, each cut into the parts that
// the ops take.
#pragma once

#include <cstdint>
#include <vector>

#include "core/aligned_memory.h"
#include "mamba3/model.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

struct StatePool::Impl {
  Impl(const ModelConfig& config_in, std::int64_t slots_in);

  Mamba3States layer(std::int64_t index);
  void check_slot(std::int32_t slot) const;

  ModelConfig config;
  std::int64_t slots;
  // Elements (4 bytes each) of one layer's parts, padded so that every part begins on a cache line.
  std::int64_t turns_count, ssm_count, k_count, v_count;
  std::int64_t turns_per_slot;   // all layers
  std::int64_t values_per_slot;  // all layers: ssm, k, v
  AlignedMemory memory;
  std::uint32_t* turns;                 // [slot, l, h * s]
  float* values;                        // [slot, l, (ssm, k, v)]
  std::vector<std::int64_t> positions;  // [slot]
};

}  // namespace mamba3
