#include "ops/mamba3_common/mamba3_ring.h"

#include "core/check.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kLineBytes = 64;

std::int64_t round_up(std::int64_t bytes) {
  return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
}

struct PartBytes {
  std::int64_t in_b, half_tanh, scalars, x;
};

PartBytes part_bytes(const Mamba3Dims& dims, std::int64_t tokens) {
  const std::int64_t row = dims.groups * dims.rank * dims.state;
  PartBytes out{};
  out.in_b = round_up((tokens + 1) * row * std::int64_t{sizeof(float)});
  out.half_tanh = round_up((tokens + 1) * dims.angles * std::int64_t{sizeof(double)});
  out.scalars = round_up(dims.heads * tokens * std::int64_t{sizeof(RingToken)});
  out.x = round_up(dims.heads * tokens * dims.head_dim * std::int64_t{sizeof(float)});
  return out;
}

}  // namespace

std::int64_t ring_bytes(const Mamba3Dims& dims, std::int64_t tokens) {
  if (tokens == 0) return 0;
  const PartBytes parts = part_bytes(dims, tokens);
  return parts.in_b + parts.half_tanh + parts.scalars + parts.x;
}

Mamba3Ring ring_views(const Mamba3Dims& dims, std::int64_t tokens, std::byte* memory,
                      std::int64_t slot_bytes) {
  Mamba3Ring out;
  if (tokens == 0) return out;
  const PartBytes parts = part_bytes(dims, tokens);
  out.tokens = tokens;
  out.slot_bytes = slot_bytes;
  out.in_b = reinterpret_cast<float*>(memory);
  out.half_tanh = reinterpret_cast<double*>(memory + parts.in_b);
  out.scalars = reinterpret_cast<RingToken*>(memory + parts.in_b + parts.half_tanh);
  out.x = reinterpret_cast<float*>(memory + parts.in_b + parts.half_tanh + parts.scalars);
  return out;
}

void check_ring(const Mamba3Dims& dims, const Mamba3Ring& ring) {
  if (ring.tokens == 0) return;
  check_input(ring.tokens >= 1 && ring.tokens <= kMostRingTokens, "the ring has ", ring.tokens,
              " tokens; expected 1 to ", kMostRingTokens, ", or 0 for none");
  check_input(ring.cursors != nullptr && ring.in_b != nullptr && ring.half_tanh != nullptr &&
                  ring.scalars != nullptr && ring.x != nullptr,
              "a part of the ring is missing; expected memory for every part");
  check_input(ring.slot_bytes >= ring_bytes(dims, ring.tokens) && ring.slot_bytes % kLineBytes == 0,
              "slots of the ring are ", ring.slot_bytes, " bytes apart; expected at least ",
              ring_bytes(dims, ring.tokens), " and a multiple of ", kLineBytes);
}

}  // namespace mamba3
