// The rings of deferred tokens of a StatePool's slots (ops/mamba3_common/mamba3_ring.h): their
// memory on the GPU, where each slot stands, and the way back to canonical states.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/memory.h"
#include "mamba3/model.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

class RingPool {
 public:
  RingPool() = default;  // none
  RingPool(const Mamba3Dims& dims, std::int64_t layers, std::int64_t slots,
           std::shared_ptr<Gpu> gpu, const StatePoolOptions& options);

  std::int64_t tokens() const { return tokens_; }
  Mamba3Ring layer(const Mamba3Dims& dims, std::int64_t index) const;

  // What settle() builds K and X again with. `owner` keeps alive what they point at.
  void use_parameters(std::vector<Mamba3Params> of_layers, std::shared_ptr<const void> owner);
  // The GPU's cursors, after the last layer of a token; `slots` lie in its memory.
  void advance(std::span<const std::int32_t> slots);
  // The host's. Both follow the same rule, so a replayed graph needs only the second.
  void count_token(std::span<const std::int32_t> slots);

  bool empty(std::int32_t slot) const;
  void clear(std::int32_t slot);
  void fork(std::int32_t from, std::int32_t to);
  // One layer; clear() when all are done.
  void settle(const Mamba3Dims& dims, const Mamba3States& states, std::int64_t layer,
              std::int32_t slot);

 private:
  std::span<const std::int32_t> on_gpu(std::int32_t slot) const { return {slot_ids_ + slot, 1}; }

  std::int64_t tokens_ = 0;
  bool stagger_ = false;
  std::shared_ptr<Gpu> gpu_;
  std::int64_t layer_bytes_ = 0, slot_bytes_ = 0;
  Memory memory_;
  std::byte* entries_ = nullptr;            // [slot, l, ...]
  std::uint32_t* gpu_cursors_ = nullptr;    // [slot]
  const std::int32_t* slot_ids_ = nullptr;  // [slot] 0, 1, 2, ...: a slot's number as an argument
  std::vector<RingCursor> cursors_;         // [slot]
  std::vector<Mamba3Params> parameters_;    // [l]
  std::shared_ptr<const void> owner_;       // of what they point at
};

}  // namespace mamba3
