#include "io/tokenizer_letters.h"

#include <array>
#include <cstdint>

#include "io/tokenizer_utf8.h"

namespace mamba3 {

namespace {

struct Alphabet {
  std::array<char32_t, 256> letter{};
  std::array<std::int16_t, 512> byte{};

  // Printable Latin-1 stands for itself; the rest gets the letters from U+0100 on, in order.
  Alphabet() {
    byte.fill(-1);
    char32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b != 0xAD);
      const auto index = static_cast<std::size_t>(b);
      letter[index] = printable ? static_cast<char32_t>(b) : next++;
      byte[letter[index]] = static_cast<std::int16_t>(b);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

char32_t letter_of_byte(unsigned char byte) {
  return alphabet().letter[byte];
}

std::optional<std::string> bytes_of_letters(std::string_view letters) {
  const Alphabet& table = alphabet();
  std::string out;
  out.reserve(letters.size());
  for (std::size_t at = 0; at < letters.size();) {
    const char32_t letter = next_code_point(letters, at);
    if (letter >= table.byte.size() || table.byte[letter] < 0) return std::nullopt;
    out += static_cast<char>(table.byte[letter]);
  }
  return out;
}

std::string letters_of_bytes(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) append_utf8(out, letter_of_byte(static_cast<unsigned char>(byte)));
  return out;
}

}  // namespace mamba3
