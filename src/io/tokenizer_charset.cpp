#include "io/tokenizer_charset.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>

#include "io/tokenizer_unicode.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {

namespace {

struct Category {
  std::string_view name;
  std::string_view long_name;  // in lower case, without separators
};

constexpr Category kCategories[] = {
    {"C", "other"},
    {"Cc", "control"},
    {"Cf", "format"},
    {"Cn", "unassigned"},
    {"Co", "privateuse"},
    {"L", "letter"},
    {"LC", "casedletter"},
    {"Ll", "lowercaseletter"},
    {"Lm", "modifierletter"},
    {"Lo", "otherletter"},
    {"Lt", "titlecaseletter"},
    {"Lu", "uppercaseletter"},
    {"M", "mark"},
    {"Mc", "spacingmark"},
    {"Me", "enclosingmark"},
    {"Mn", "nonspacingmark"},
    {"N", "number"},
    {"Nd", "decimalnumber"},
    {"Nl", "letternumber"},
    {"No", "othernumber"},
    {"P", "punctuation"},
    {"Pc", "connectorpunctuation"},
    {"Pd", "dashpunctuation"},
    {"Pe", "closepunctuation"},
    {"Pf", "finalpunctuation"},
    {"Pi", "initialpunctuation"},
    {"Po", "otherpunctuation"},
    {"Ps", "openpunctuation"},
    {"S", "symbol"},
    {"Sc", "currencysymbol"},
    {"Sk", "modifiersymbol"},
    {"Sm", "mathsymbol"},
    {"So", "othersymbol"},
    {"Z", "separator"},
    {"Zl", "lineseparator"},
    {"Zp", "paragraphseparator"},
    {"Zs", "spaceseparator"},
};

constexpr std::string_view kScripts[] = {"Arabic",   "Cyrillic", "Devanagari", "Greek",
                                         "Han",      "Hangul",   "Hebrew",     "Hiragana",
                                         "Katakana", "Latin",    "Thai"};

// Names are compared without case, blanks, hyphens and underscores.
std::string plain_name(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (c != ' ' && c != '-' && c != '_') {
      out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  return out;
}

std::string without(const std::string& excluded_items, const std::string& pattern) {
  return "(?:(?![" + excluded_items + "])" + pattern + ")";
}

CharSet category_set(std::string_view name) {
  CharSet set;
  const std::string property = "\\p{" + std::string(name) + "}";
  if (name == "C" || name == "Cn") {  // PCRE2 counts what it does not know as unassigned
    set.atoms.push_back(without(newer_in_category(""), property));
    if (name == "C") set.items = newer_in_category("C");
  } else if (name == "LC") {
    for (const auto* part : {"Lu", "Ll", "Lt"}) add_to_set(set, category_set(part));
  } else if (name == "Mn") {  // U+1171E became a spacing mark
    set.atoms.push_back(without("\\x{1171E}", property));
    set.items = newer_in_category(name);
  } else {
    set.items = property + newer_in_category(name);
    if (name == "Mc") set.items += "\\x{1171E}";
  }
  set.has_letters = name[0] == 'L' || name == "C";
  set.is_case_sensitive = name == "Lu" || name == "Ll" || name == "Lt";
  if (name == "L") set.other_cases = "\\x{345}";
  if (name == "M" || name == "Mn") set.other_cases = "\\x{399}\\x{3B9}\\x{1FBE}";
  return set;
}

}  // namespace

CharSet white_space_set() {
  // Not \s: PCRE2 counts U+180E.
  CharSet set;
  set.items =
      "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}"
      "\\x{202F}\\x{205F}\\x{3000}";
  return set;
}

CharSet digit_set() {
  return category_set("Nd");
}

CharSet hex_digit_set() {
  CharSet set;
  set.items = "0-9A-Fa-f";
  return set;
}

CharSet word_set() {
  CharSet set;
  for (const auto* part : {"L", "M", "Nd", "Nl", "Pc"}) add_to_set(set, category_set(part));
  // Alphabetic symbols.
  set.items += "\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}";
  return set;
}

CharSet bare_word_set() {
  CharSet set = word_set();
  set.items += "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";
  return set;
}

std::optional<CharSet> property_set(std::string_view name) {
  const std::string plain = plain_name(name);
  for (const Category& category : kCategories) {
    if (plain == plain_name(category.name) || plain == category.long_name) {
      return category_set(category.name);
    }
  }
  for (const std::string_view script : kScripts) {
    if (plain != plain_name(script)) continue;
    CharSet set;
    set.items = "\\p{sc:" + std::string(script) + "}" + newer_in_script(script);
    set.has_letters = true;
    set.is_case_sensitive = true;  // not so for all, but a script under (?i) is rare
    return set;
  }
  return std::nullopt;
}

void add_to_set(CharSet& set, const CharSet& more) {
  set.items += more.items;
  set.atoms.insert(set.atoms.end(), more.atoms.begin(), more.atoms.end());
  set.has_letters |= more.has_letters;
  set.is_case_sensitive |= more.is_case_sensitive;
  set.other_cases += more.other_cases;
}

CharSet complement_set(const CharSet& set) {
  CharSet out;
  out.atoms.push_back(set_pattern(set, true));
  out.has_letters = true;
  out.is_case_sensitive = true;
  return out;
}

CharSet intersect_sets(const CharSet& a, const CharSet& b) {
  CharSet out;
  out.atoms.push_back("(?:(?=" + set_pattern(a, false) + ")" + set_pattern(b, false) + ")");
  out.has_letters = true;
  out.is_case_sensitive = true;
  return out;
}

std::string set_pattern(const CharSet& set, bool negated) {
  if (set.atoms.empty()) return (negated ? "[^" : "[") + set.items + "]";
  std::string any;
  if (!set.items.empty()) any = "[" + set.items + "]";
  for (const std::string& atom : set.atoms) any += (any.empty() ? "" : "|") + atom;
  // Atomic: members may overlap, and trying each of them again would double the steps each time.
  return negated ? "(?:(?!" + any + ")(?s:.))" : "(?>" + any + ")";
}

std::string literal_pattern(char32_t code_point) {
  std::string out;
  if (code_point >= 0x80 || std::isalnum(static_cast<int>(code_point)) != 0) {
    append_utf8(out, code_point);
    return out;
  }
  std::array<char, 16> escaped{};
  std::snprintf(escaped.data(), escaped.size(), "\\x{%X}", static_cast<unsigned>(code_point));
  return escaped.data();
}

}  // namespace mamba3
