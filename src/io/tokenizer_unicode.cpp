#include "io/tokenizer_unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdio>
#include <iterator>

namespace mamba3 {

namespace {

struct NamedRange {
  char32_t first;
  char32_t last;
  std::string_view name;
};

struct CodePointRange {
  char32_t first;
  char32_t last;
};

#include "io/tokenizer_unicode_tables.inc"

// The range of a sorted table that holds the code point, or null.
template <class Range, std::size_t kCount>
const Range* find_range(const Range (&table)[kCount], char32_t code_point) {
  const Range* found =
      std::lower_bound(std::begin(table), std::end(table), code_point,
                       [](const Range& range, char32_t wanted) { return range.last < wanted; });
  return found != std::end(table) && found->first <= code_point ? found : nullptr;
}

std::string class_item(char32_t first, char32_t last) {
  char item[32];
  const auto low = static_cast<unsigned>(first);
  const auto high = static_cast<unsigned>(last);
  if (first == last) {
    std::snprintf(item, sizeof(item), "\\x{%X}", low);
  } else {
    std::snprintf(item, sizeof(item), "\\x{%X}-\\x{%X}", low, high);
  }
  return item;
}

std::string_view category_of(char32_t code_point) {
  const NamedRange* newer = find_range(kNewer, code_point);
  return newer != nullptr ? newer->name
                          : utf8proc_category_string(static_cast<utf8proc_int32_t>(code_point));
}

bool is_circled_letter(char32_t c) {  // alphabetic though symbols
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

}  // namespace

std::string newer_in_category(std::string_view category) {
  std::string out;
  for (const NamedRange& range : kNewer) {
    if (range.name.starts_with(category)) out += class_item(range.first, range.last);
  }
  return out;
}

std::string newer_in_script(std::string_view script) {
  std::string out;
  for (const NamedRange& range : kNewerInScript) {
    if (range.name == script) out += class_item(range.first, range.last);
  }
  return out;
}

std::string digits_beyond_numbers() {
  std::string out;
  for (const CodePointRange& range : kOnlyDigitsSplitter)
    out += class_item(range.first, range.last);
  return out;
}

bool is_unknown_to_normalizer(char32_t code_point) {
  return find_range(kUnknownToNormalizer, code_point) != nullptr ||
         find_range(kNewer, code_point) != nullptr;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_word_character(char32_t c) {
  const std::string_view category = category_of(c);
  return category[0] == 'L' || category[0] == 'M' || category == "Nd" || category == "Nl" ||
         category == "Pc" || is_circled_letter(c) || c == 0x200C || c == 0x200D;
}

bool is_caseless(char32_t code_point) {
  const std::string_view category = category_of(code_point);
  return category[0] == 'P' || category[0] == 'Z' || category == "Nd" || category == "Sm" ||
         category == "Sc" || category == "Cc";
}

}  // namespace mamba3
