// What goes with mamba3_step where states have a ring of deferred tokens (mamba3_ring.h), on a GPU.
// Nothing here waits; slots and tokens lie in its memory.
//
// A token of a model: mamba3_step of every layer, then mamba3_ring_advance once, which all layers
// share. So a step reads nothing from the host that changes, and can be replayed as a graph.
#pragma once

#include <cstdint>
#include <span>

#include "core/gpu.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

// Whether steps with a ring exist for this shape on this card: compute capability 9.0, head dim 64,
// state size 64 or 128, rank 1, 2 or 4, rotated by the data with a multiple of 4 angles, no
// out-norm.
bool mamba3_ring_fits(const Mamba3Dims& dims, const Gpu& gpu);

struct RingCursorArgs {
  Mamba3Ring ring;                      // of any layer
  std::span<const std::int32_t> slots;  // [b], all different
};

// After the last layer of a token. The host follows with advanced_cursor().
void mamba3_ring_advance(const RingCursorArgs& args, Gpu& gpu);
// Takes back the newest tokens[i] tokens of slots[i]. Only what is still in the ring can be taken
// back, and one token always stays.
void mamba3_ring_roll_back(const RingCursorArgs& args, std::span<const std::int32_t> tokens,
                           Gpu& gpu);

struct RingSettleArgs {
  Mamba3Dims dims;
  Mamba3Params params;
  Mamba3States states;                  // of one layer
  std::span<const std::int32_t> slots;  // [b], all different
};

// Folds the rings of one layer: turns, ssm, k and v become the canonical tuple. When all layers are
// done, mamba3_ring_clear makes it count.
void mamba3_ring_settle(const RingSettleArgs& args, Gpu& gpu);
void mamba3_ring_clear(const RingCursorArgs& args, Gpu& gpu);

}  // namespace mamba3
