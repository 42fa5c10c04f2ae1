// UTF-8 for the tokenizer: checking once at the door, then walking text that is known to be good.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mamba3 {

// The sequence that begins at text[at], by the rules of Unicode (no overlong forms, no surrogates,
// nothing above U+10FFFF).
struct Utf8Sequence {
  std::size_t bytes = 0;  // of a character, or of the ill-formed part that one U+FFFD replaces
  bool well_formed = false;
  bool cut_off = false;  // ill-formed only because the text ends here
};
Utf8Sequence utf8_sequence(std::string_view text, std::size_t at);

// Position of the first ill-formed byte, or npos.
std::size_t find_ill_formed(std::string_view text);

// The code point at `at` of well-formed text; moves `at` behind it.
char32_t next_code_point(std::string_view text, std::size_t& at);
// The code point that ends just before `end` > 0.
char32_t previous_code_point(std::string_view text, std::size_t end);
inline bool is_continuation_byte(char byte) {
  return (byte & 0xC0) == 0x80;
}

void append_utf8(std::string& out, char32_t code_point);

}  // namespace mamba3
