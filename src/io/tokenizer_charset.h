// Sets of characters as PCRE2 writes them, with Oniguruma's meaning.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mamba3 {

// A union. PCRE2's classes know no intersection, so part of a set may stand outside of a class.
struct CharSet {
  std::string items;               // inside of a class: ranges and properties
  std::vector<std::string> atoms;  // further patterns, each for one character
  // How (?i) changes a class with this set in Oniguruma.
  bool has_letters = false;  // then some sequences of letters match as one, as "ss" for sharp s
  bool is_case_sensitive = false;  // then other letters join
  std::string other_cases;         // characters that join (U+0345 is a mark, its capital a letter)
};

CharSet white_space_set();
CharSet digit_set();
CharSet hex_digit_set();
CharSet word_set();
// \w outside of brackets, and what \b goes by: there Oniguruma asks a table of its own for Latin-1,
// which has a few more numbers.
CharSet bare_word_set();
// A general category or a script by any of its names, or nothing for a name we do not know.
std::optional<CharSet> property_set(std::string_view name);

void add_to_set(CharSet& set, const CharSet& more);
CharSet complement_set(const CharSet& set);
CharSet intersect_sets(const CharSet& a, const CharSet& b);
// A pattern for one character in (or, negated, outside of) the set.
std::string set_pattern(const CharSet& set, bool negated);

// A character outside or inside of a class, escaped.
std::string literal_pattern(char32_t code_point);

}  // namespace mamba3
