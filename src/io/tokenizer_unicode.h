// Unicode as Hugging Face's tokenizers sees it. PCRE2 and utf8proc know other versions of Unicode
// than its libraries; the differences are tables here, so that ids are the same.
#pragma once

#include <string>
#include <string_view>

namespace mamba3 {

// Items of a PCRE2 character class, "\x{..}-\x{..}...": the characters of a general category ("Lu",
// or "L" for all that begin with it; "" for all) that PCRE2 may not know yet.
std::string newer_in_category(std::string_view category);
std::string newer_in_script(std::string_view script);
// Numbers that the Digits pre-tokenizer knows beyond \p{N}.
std::string digits_beyond_numbers();

// What normalizers leave as it is and where it is: no decomposition, no order, no composition.
bool is_unknown_to_normalizer(char32_t code_point);

// White_Space.
bool is_white_space(char32_t code_point);
// \w of Unicode's UTS 18, which decides where a single-word added token may stand.
bool is_word_character(char32_t code_point);
// Equal to itself in every case, and part of no multi-character case folding.
bool is_caseless(char32_t code_point);

}  // namespace mamba3
