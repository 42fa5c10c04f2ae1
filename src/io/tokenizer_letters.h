// The alphabet in which byte-level tokenizers write bytes: a printable letter for each.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace mamba3 {

char32_t letter_of_byte(unsigned char byte);
// The bytes that a token's letters stand for, or nothing if one of its characters is no such
// letter.
std::optional<std::string> bytes_of_letters(std::string_view letters);
std::string letters_of_bytes(std::string_view bytes);

}  // namespace mamba3
