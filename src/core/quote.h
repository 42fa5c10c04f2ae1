// Names taken from a file, made safe to show: a hostile file must not fill or steer a terminal.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mamba3 {

// In double quotes, control and non-ASCII bytes as \xNN, cut after 100 bytes.
inline std::string quote(std::string_view text) {
  constexpr std::size_t kMostBytes = 100;
  constexpr const char* kDigits = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text.substr(0, kMostBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kDigits[byte >> 4];
      out += kDigits[byte & 15];
    }
  }
  return out + (text.size() > kMostBytes ? "\"..." : "\"");
}

}  // namespace mamba3
