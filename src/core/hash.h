// A 64-bit checksum: each step is a bijection of the running value, so any single changed bit
// changes the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace mamba3 {

class Hash64 {
 public:
  void update(std::uint64_t word) {
    value_ ^= word;
    value_ *= 0x9e3779b97f4a7c15u;
    value_ ^= value_ >> 29;
  }
  void update(std::span<const std::byte> bytes) {
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data() + i, 8);
      update(word);
    }
    std::uint64_t tail = 0;
    if (i < bytes.size()) std::memcpy(&tail, bytes.data() + i, bytes.size() - i);
    update(tail);
    update(static_cast<std::uint64_t>(bytes.size()));
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0x243f6a8885a308d3u;
};

}  // namespace mamba3
