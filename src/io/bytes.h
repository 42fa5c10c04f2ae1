// Little-endian numbers at an offset of a byte range. Callers check the range first.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>

namespace mamba3 {

static_assert(std::endian::native == std::endian::little,
              "checkpoint data is little-endian and used in place");

template <std::integral T>
T load_le(std::span<const std::byte> bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

inline std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The product of two sizes, or -1 when it does not fit; -1 stays -1.
inline std::int64_t multiply_sizes(std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &out)) return -1;
  return out;
}

}  // namespace mamba3
