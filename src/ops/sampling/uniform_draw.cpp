#include <cstdint>

#include "mamba3/sampling.h"
#include "ops/sampling/philox.h"

namespace mamba3 {

double uniform_draw(std::uint64_t seed, std::uint64_t stream, std::uint64_t position) {
  const auto bits = random_words(seed, stream, position);
  const std::uint64_t word = (std::uint64_t{bits[1]} << 32) | bits[0];
  return static_cast<double>(word >> 11) * 0x1p-53;
}

}  // namespace mamba3
