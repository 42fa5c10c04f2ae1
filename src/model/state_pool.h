// Inside of StatePool: one block of memory per slot, cut into layers, each cut into the parts that
// the ops take.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/memory.h"
#include "mamba3/model.h"
#include "model/ring_pool.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

struct StatePool::Impl {
  Impl(const ModelConfig& config_in, std::int64_t slots_in, std::shared_ptr<Gpu> gpu_in,
       const StatePoolOptions& options = {});

  Mamba3States layer(std::int64_t index) const;
  void check_slot(std::int32_t slot) const;

  // The parts of a layer in a slot that begins at the two addresses.
  SequenceState::Parts slot_parts(std::int64_t layer, float* slot_values,
                                  std::uint32_t* slot_turns) const;
  float* slot_values(std::int32_t slot) const { return values + slot * values_per_slot; }
  std::uint32_t* slot_turns(std::int32_t slot) const { return turns + slot * turns_per_slot; }
  std::size_t slot_values_bytes() const { return sizeof(float) * values_per_slot; }
  std::size_t slot_turns_bytes() const { return sizeof(std::uint32_t) * turns_per_slot; }

  // Tokens in the rings are made part of the states with the parameters of the model whose steps
  // put them there. `owner` keeps those alive.
  void use_parameters(std::vector<Mamba3Params> of_layers, std::shared_ptr<const void> owner);
  // The host's part of a token: positions and cursors of these slots move on by one. The GPU's
  // cursors are moved by mamba3_ring_advance.
  void count_token(std::span<const std::int32_t> of_slots);
  // States become canonical tuples.
  void settle(std::span<const std::int32_t> of_slots);

  ModelConfig config;
  Mamba3Dims dims;
  std::int64_t slots;
  std::shared_ptr<Gpu> gpu;  // null: in the host's memory
  // Elements (4 bytes each) of one layer's parts, padded so that every part begins on a cache line.
  std::int64_t turns_count, ssm_count, k_count, v_count;
  std::int64_t turns_per_slot;   // all layers
  std::int64_t values_per_slot;  // all layers: ssm, k, v
  Memory memory;
  std::uint32_t* turns;                 // [slot, l, h * s]
  float* values;                        // [slot, l, (ssm, k, v)]
  std::vector<std::int64_t> positions;  // [slot]
  RingPool ring;
};

}  // namespace mamba3
