// Bytes as a saved state of a tiny model: they are refused with an Error, or they are exactly what
// would be saved.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "mamba3/error.h"
#include "mamba3/state.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mamba3::ModelConfig config;
  config.width = 8;
  config.layers = 1;
  config.vocab = 16;
  config.mixer.head_dim = 8;
  config.mixer.state = 4;
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    const auto state = mamba3::SequenceState::deserialize(bytes, config, 7, "input");
    const auto again = state.serialize();
    if (again.size() != size || std::memcmp(again.data(), data, size) != 0) std::abort();
  } catch (const mamba3::Error&) {
  }
  return 0;
}
