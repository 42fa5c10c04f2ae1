// Between radians and the unsigned 32-bit turns that states hold: 2^32 is one turn.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace mamba3 {

// Any finite angle, taken modulo a turn.
inline std::uint32_t turns_of_radians(double angle) {
  const double turns = angle / (2 * std::numbers::pi);
  return static_cast<std::uint32_t>(std::llrint((turns - std::floor(turns)) * 0x1p32));
}

// In [0, 2 pi). Back to turns it is exact.
inline double radians_of_turns(std::uint32_t turns) {
  return turns * (2 * std::numbers::pi * 0x1p-32);
}

// Ordinary RoPE, rotation angles of 10000^(-i / s) radians a token for pair i of s (Su et al. 2021,
// section 3.2.2), as turns, rounded to the units of a state: so every sum of them is exact.
inline double fixed_step_turns(std::int64_t pair, std::int64_t pairs) {
  const double radians =
      std::exp2(-std::log2(10000.0) * static_cast<double>(pair) / static_cast<double>(pairs));
  return std::rint(radians / (2 * std::numbers::pi) * 0x1p32) * 0x1p-32;
}

}  // namespace mamba3
