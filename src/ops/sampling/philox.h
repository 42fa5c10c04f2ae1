// Random numbers by position: Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", 2011). Any thread computes any of them, without those before.
#pragma once

#include <array>
#include <cstdint>

namespace mamba3 {

// Four random 32-bit words for each (seed, stream, position).
inline std::array<std::uint32_t, 4> random_words(std::uint64_t seed, std::uint64_t stream,
                                                 std::uint64_t position) {
  const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const auto high = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };
  std::array<std::uint32_t, 4> counter{low(position), high(position), low(stream), high(stream)};
  std::array<std::uint32_t, 2> key{low(seed), high(seed)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xd2511f53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xcd9e8d57u} * counter[2];
    counter = {high(b) ^ counter[1] ^ key[0], low(b), high(a) ^ counter[3] ^ key[1], low(a)};
    key = {key[0] + 0x9e3779b9u, key[1] + 0xbb67ae85u};
  }
  return counter;
}

}  // namespace mamba3
