// Where a sequence stands in its ring of deferred tokens (mamba3_ring.h): 32 bits for each slot.
// The GPU moves them on by itself, the host follows by the same rule.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MAMBA3_HOST_DEVICE __host__ __device__
#else
#define MAMBA3_HOST_DEVICE
#endif

namespace mamba3 {

struct RingCursor {
  std::uint32_t count = 0;  // entries; 0: the state is the canonical tuple
  std::uint32_t limit = 0;  // at so many the next token folds them
  // Entry 0 lies in one of two places in turn: the heads of a sequence fold at different times, so
  // some still read the old one when another writes the new one.
  std::uint32_t parity = 0;
};

MAMBA3_HOST_DEVICE inline RingCursor unpack_cursor(std::uint32_t bits) {
  RingCursor out;
  out.count = bits & 0xff;
  out.limit = bits >> 8 & 0xff;
  out.parity = bits >> 16 & 1;
  return out;
}

MAMBA3_HOST_DEVICE inline std::uint32_t pack_cursor(const RingCursor& cursor) {
  return cursor.count | cursor.limit << 8 | cursor.parity << 16;
}

// After one more token, which is then the last entry; the only one where it folded the others (or
// the canonical tuple's).
MAMBA3_HOST_DEVICE inline RingCursor advanced_cursor(const RingCursor& at, std::uint32_t tokens,
                                                     bool stagger, std::uint32_t slot) {
  RingCursor out = at;
  if (at.count == 0) {
    out.count = 1;
    out.limit = stagger ? tokens - slot % tokens : tokens;
  } else if (at.count >= at.limit) {
    out.count = 1;
    out.limit = tokens;
    out.parity = at.parity ^ 1;
  } else {
    out.count = at.count + 1;
  }
  return out;
}

// Without its last `tokens` entries; one always stays.
MAMBA3_HOST_DEVICE inline RingCursor rolled_back_cursor(const RingCursor& at,
                                                        std::uint32_t tokens) {
  RingCursor out = at;
  if (at.count > 0) out.count = tokens < at.count ? at.count - tokens : 1;
  return out;
}

// Of tokens + 1 places.
MAMBA3_HOST_DEVICE inline std::uint32_t ring_place(const RingCursor& cursor, std::uint32_t entry,
                                                   std::uint32_t tokens) {
  return entry == 0 && cursor.parity != 0 ? tokens : entry;
}

}  // namespace mamba3
