// The ring of deferred tokens: up to `tokens` of a sequence's newest tokens beside the state, not
// yet folded into it, so that most steps read the state and do not write it.
//
// With entries in the ring, `ssm` holds everything before the first of them, with final weights;
// `turns` are the phases before the first of them; `k` and `v` are stale. The newest token is never
// folded by a step: its weight gamma_t + (1 - lam_{t+1}) dt_{t+1} is known only when the next one
// comes. Without entries the state is the canonical tuple.
//
// An entry keeps what the token brought and nothing that a head makes of it: K is built again from
// the normalised B, the layer's bias and the phase, which is the base plus the moves up to there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ops/mamba3_common/ring_cursor.h"

namespace mamba3 {

struct Mamba3Dims;

constexpr std::int64_t kMostRingTokens = 16;

// One token of one head.
struct alignas(16) RingToken {
  double dt;         // phases move by half_tanh * dt turns, bit for bit as in step and scan
  double log_decay;  // a * dt
  float now;         // gamma
  float carry;       // (1 - lam) dt, with which this token takes the one before it
  float fill[2];     // whole pieces of 16 bytes
};

// Views into memory of the states' device. Places of in_b and half_tanh: ring_place(). Slots are
// `slot_bytes` apart in every part; nothing beyond an entry is ever read.
struct Mamba3Ring {
  std::int64_t tokens = 0;           // 1 to kMostRingTokens; 0: no ring
  bool stagger = false;              // a slot's first period is shorter by slot modulo tokens
  std::uint32_t* cursors = nullptr;  // [slot], the same of all layers
  float* in_b = nullptr;             // [slot, tokens + 1, g, r, n], normalised, pair after pair
  double* half_tanh = nullptr;       // [slot, tokens + 1, s]
  RingToken* scalars = nullptr;      // [slot, h, tokens]
  float* x = nullptr;                // [slot, h, tokens, p]
  std::int64_t slot_bytes = 0;
};

// What one slot takes in one layer; a multiple of 64.
std::int64_t ring_bytes(const Mamba3Dims& dims, std::int64_t tokens);
// The parts of a layer, of which slot 0 begins at `memory`.
Mamba3Ring ring_views(const Mamba3Dims& dims, std::int64_t tokens, std::byte* memory,
                      std::int64_t slot_bytes);
void check_ring(const Mamba3Dims& dims, const Mamba3Ring& ring);

}  // namespace mamba3
