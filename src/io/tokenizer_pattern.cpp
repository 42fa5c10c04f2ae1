#include "io/tokenizer_pattern.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_charset.h"
#include "io/tokenizer_unicode.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {

namespace {

constexpr int kMostNesting = 50;
constexpr std::size_t kMostBytes = 65536;
constexpr int kMostRepeats = 1000;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// What one escape or one plain character stands for: a character or a set.
struct Member {
  std::optional<char32_t> character;
  CharSet set;
};

struct Atom {
  std::string text;
  bool repeatable = true;
};

struct Flags {
  bool caseless = false;
  bool dot_is_all = false;
};

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& origin)
      : pattern_(pattern), origin_(origin) {}

  std::string run() {
    check_input(pattern_.size() <= kMostBytes, origin_, " has ", pattern_.size(),
                " bytes; expected a regex of at most ", kMostBytes);
    check_input(!pattern_.empty(), origin_, " is empty; expected a regex that matches something");
    std::string out = alternatives();
    if (!at_end()) refuse("an unmatched )");
    return out;
  }

 private:
  bool at_end() const { return at_ == pattern_.size(); }
  char peek(std::size_t ahead = 0) const {
    return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0';
  }
  bool take(std::string_view text) {
    if (!pattern_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }
  [[noreturn]] void refuse(std::string_view found) const {
    fail(ErrorCode::kBadInput, origin_, " has ", found, " at byte ", at_, ": ", quote(pattern_),
         "; expected the common syntax of Oniguruma; write the regex without it");
  }

  // Engines differ in when such a repeat ends.
  [[noreturn]] void refuse_empty_repeat() const { refuse("a repeat of what may match nothing"); }

  std::string alternatives();
  std::string repeated();
  bool before_repeat();
  std::string repeat(const Atom& atom);
  // Sets most to -1 for no end.
  bool read_interval(int& least, int& most);
  Atom atom();
  Atom group();
  Atom look_around(std::string_view opening);
  Atom option_group();
  std::string group_body();
  Atom character(char32_t code_point);
  Atom escape();
  Atom set_atom(const CharSet& set) const;
  Atom word_boundary(bool negated) const;
  Member member(bool in_class);
  Member escaped_letter(char letter, bool in_class);
  char32_t hex(std::size_t most_digits);
  CharSet property(bool negated);
  CharSet bracket();
  CharSet bracket_union(bool first_in_bracket);
  void add_range(CharSet& set, char32_t first, char32_t last);
  std::string class_pattern(const CharSet& set, bool negated) const;

  std::string_view pattern_;
  const std::string& origin_;
  std::size_t at_ = 0;
  int nesting_ = 0;
  Flags flags_;
  char32_t last_literal_ = 0;  // directly before, under (?i)
  bool unbounded_ = false;     // a repeat without end was written since this was last cleared
  bool may_be_empty_ = false;  // what was written last can match nothing
};

std::string Translator::alternatives() {
  std::string out;
  bool some_empty = false;
  bool this_empty = true;
  while (!at_end() && peek() != ')') {
    if (take("|")) {
      out += '|';
      last_literal_ = 0;
      some_empty |= this_empty;
      this_empty = true;
    } else {
      out += repeated();
      this_empty &= may_be_empty_;
    }
  }
  may_be_empty_ = some_empty || this_empty;
  return out;
}

std::string Translator::repeated() {
  const bool outer = unbounded_;
  unbounded_ = false;
  may_be_empty_ = false;
  const Atom one = atom();
  may_be_empty_ |= !one.repeatable;
  if (!one.repeatable && before_repeat()) refuse("a repeated anchor or look-around");
  std::string out = repeat(one);
  unbounded_ |= outer;
  return out;
}

bool Translator::before_repeat() {
  const char c = peek();
  if (c == '*' || c == '+' || c == '?') return true;
  const std::size_t start = at_;
  int unused = 0;
  const bool is_interval = c == '{' && read_interval(unused, unused);
  at_ = start;
  return is_interval;
}

// Reads {n}, {n,}, {n,m} or {,m}; anything else in braces is literal text.
bool Translator::read_interval(int& least, int& most) {
  std::size_t at = at_ + 1;
  const auto number = [&](int& value) {
    const std::size_t begin = at;
    value = 0;
    while (at < pattern_.size() && is_digit(pattern_[at])) {
      value = std::min(value * 10 + (pattern_[at++] - '0'), kMostRepeats + 1);
    }
    return at != begin;
  };
  const bool has_least = number(least);
  most = least;
  if (at < pattern_.size() && pattern_[at] == ',') {
    ++at;
    if (!number(most)) {
      if (!has_least) return false;
      most = -1;
    }
  } else if (!has_least) {
    return false;
  }
  if (at >= pattern_.size() || pattern_[at] != '}') return false;
  if (std::max(least, most) > kMostRepeats) refuse("a repeat of more than 1000");
  if (most >= 0 && least > most) refuse("a repeat whose bounds are reversed");
  at_ = at + 1;
  return true;
}

std::string Translator::repeat(const Atom& atom) {
  const std::size_t start = at_;
  std::string out = atom.text;
  int least = 0;
  int most = 0;
  if (peek() == '{' && read_interval(least, most)) {
    unbounded_ |= most < 0;
    const bool has_comma = pattern_.substr(start, at_ - start).find(',') != std::string_view::npos;
    out += "{" + std::to_string(least);
    if (has_comma) out += "," + (most < 0 ? std::string() : std::to_string(most));
    out += "}";
    // In Ruby's syntax {n}? is an optional {n}, and a + after braces repeats once more.
    const bool of_empty = may_be_empty_;
    may_be_empty_ |= least == 0;
    if (take("?")) {
      out = has_comma ? out + "?" : "(?:" + out + ")?";
      may_be_empty_ |= !has_comma;
    } else if (take("+")) {
      if (may_be_empty_) refuse_empty_repeat();
      out = "(?:" + out + ")+";
      unbounded_ = true;
    }
    if (of_empty) refuse_empty_repeat();
  } else if (!at_end() && (peek() == '*' || peek() == '+' || peek() == '?')) {
    const bool endless = peek() != '?';
    if (endless && may_be_empty_) refuse_empty_repeat();
    may_be_empty_ |= peek() != '+';
    out += pattern_[at_++];
    if (take("?")) {
      out += '?';
    } else if (take("+")) {
      out += '+';
      // What is possessive is scanned at once, without steps that the match limit counts.
      if (endless) out = "(?:(?C" + std::to_string(kUncountedCallout) + ")" + out + ")";
    }
    unbounded_ |= endless;
  } else {
    return out;
  }
  last_literal_ = 0;
  if (before_repeat()) refuse("a repeat of a repeat");
  return out;
}

Atom Translator::atom() {
  const char c = peek();
  if (c == '(') return group();
  if (c == '[') {
    last_literal_ = 0;
    ++at_;
    const bool negated = take("^");
    const CharSet set = bracket();
    return {class_pattern(set, negated)};
  }
  if (c == '\\') return escape();
  if (before_repeat()) refuse("a repeat of nothing");
  if (c == '.' || c == '^' || c == '$') {
    last_literal_ = 0;
    ++at_;
    if (c == '.') return {flags_.dot_is_all ? "(?s:.)" : "[^\\n]"};
    return {c == '^' ? "(?m:^)" : "(?m:$)", false};
  }
  return character(next_code_point(pattern_, at_));
}

Atom Translator::character(char32_t code_point) {
  if (flags_.caseless) {
    const auto lower = [](char32_t c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; };
    const char32_t before = lower(last_literal_);
    const char32_t now = lower(code_point);
    // Oniguruma lets these match one ligature or sharp s as well.
    if ((before == 'f' && (now == 'f' || now == 'i' || now == 'l')) ||
        (before == 's' && (now == 's' || now == 't'))) {
      refuse("a sequence under (?i) that a single character also equals (ff, fi, fl, ss or st)");
    }
    if (code_point >= 0x80 && !is_caseless(code_point)) refuse("a non-ASCII letter under (?i)");
  }
  last_literal_ = flags_.caseless ? code_point : 0;
  return {literal_pattern(code_point)};
}

Atom Translator::group() {
  if (++nesting_ > kMostNesting) refuse("groups nested deeper than 50 levels");
  const Flags outer = flags_;
  Atom out;
  if (!pattern_.substr(at_).starts_with("(?")) {  // nothing refers back, so nothing is captured
    ++at_;
    out = {"(?:" + group_body()};
  } else if (take("(?:")) {
    out = {"(?:" + group_body()};
  } else if (take("(?>")) {
    last_literal_ = 0;
    out = look_around("(?>");
    out = {"(?:" + out.text + ")"};
  } else if (take("(?=")) {
    out = look_around("(?=");
  } else if (take("(?!")) {
    out = look_around("(?!");
  } else if (take("(?<=")) {
    out = look_around("(?<=");
  } else if (take("(?<!")) {
    out = look_around("(?<!");
  } else {
    out = option_group();
  }
  flags_ = outer;
  --nesting_;
  return out;
}

std::string Translator::group_body() {
  const std::size_t opening = at_;
  std::string out = alternatives();
  if (!take(")")) {
    at_ = opening;
    refuse("a ( without its )");
  }
  return out + ")";
}

// Also atomic groups: all of them are left without steps that the match limit counts.
Atom Translator::look_around(std::string_view opening) {
  last_literal_ = 0;
  unbounded_ = false;
  std::string out = std::string(opening) + group_body();
  last_literal_ = 0;
  if (unbounded_) out = "(?C" + std::to_string(kUncountedCallout) + ")" + out;
  return {out, false};
}

// (?i:...), (?m-i:...), and (?i), which lasts to the end of its group, alternatives included.
Atom Translator::option_group() {
  const std::size_t opening = at_;
  at_ += 2;
  bool on = true;
  while (peek() == 'i' || peek() == 'm' || peek() == '-') {
    const char c = pattern_[at_++];
    if (c == '-') on = false;
    if (c == 'i') flags_.caseless = on;
    if (c == 'm') flags_.dot_is_all = on;
  }
  const std::string opened = flags_.caseless ? "(?i:" : "(?-i:";
  if (take(":")) return {opened + group_body()};
  if (take(")")) return {opened + alternatives() + ")"};
  at_ = opening;
  refuse("a group of an unknown kind");
}

Atom Translator::set_atom(const CharSet& set) const {
  // Outside of brackets a set is not widened by (?i).
  const std::string out = set_pattern(set, false);
  return {flags_.caseless ? "(?-i:" + out + ")" : out};
}

Atom Translator::word_boundary(bool negated) const {
  const std::string word = set_pattern(bare_word_set(), false);
  const std::string after = "(?<=" + word + ")";
  const std::string not_after = "(?<!" + word + ")";
  const std::string before = "(?=" + word + ")";
  const std::string not_before = "(?!" + word + ")";
  const std::string out = negated ? after + before + "|" + not_after + not_before
                                  : after + not_before + "|" + not_after + before;
  return {"(?-i:" + out + ")", false};
}

Atom Translator::escape() {
  const char c = peek(1);
  const char32_t literal_before = last_literal_;
  last_literal_ = 0;
  if (c == 'b' || c == 'B') {
    at_ += 2;
    return word_boundary(c == 'B');
  }
  if (c == 'A' || c == 'z' || c == 'Z') {
    at_ += 2;
    return {std::string("\\") + c, false};
  }
  if (take("\\R")) return {"(?>\\r\\n|[\\n-\\r\\x{85}\\x{2028}\\x{2029}])"};
  const Member found = member(false);
  if (!found.character) return set_atom(found.set);
  last_literal_ = literal_before;
  return character(*found.character);
}

// The escape at the position.
Member Translator::member(bool in_class) {
  const std::size_t start = at_;
  ++at_;
  if (at_end()) refuse("a \\ at the end");
  const char c = peek();
  if (!is_letter(c) && !is_digit(c)) return {next_code_point(pattern_, at_), {}};
  ++at_;
  if (c == '0' && !is_digit(peek())) return {U'\0', {}};
  if (is_letter(c)) {
    Member found = escaped_letter(c, in_class);
    if (found.character || !found.set.items.empty() || !found.set.atoms.empty()) return found;
  }
  at_ = start;
  refuse("an escape of an unknown kind");
}

Member Translator::escaped_letter(char letter, bool in_class) {
  switch (letter) {
    case 't':
      return {U'\t', {}};
    case 'n':
      return {U'\n', {}};
    case 'r':
      return {U'\r', {}};
    case 'f':
      return {U'\f', {}};
    case 'v':
      return {U'\v', {}};
    case 'a':
      return {U'\a', {}};
    case 'e':
      return {U'\x1B', {}};
    case 'b':
      return in_class ? Member{U'\b', {}} : Member{};
    case 'x':
      return {hex(2), {}};
    case 'u':
      return {hex(4), {}};
    case 's':
      return {{}, white_space_set()};
    case 'S':
      return {{}, complement_set(white_space_set())};
    case 'd':
      return {{}, digit_set()};
    case 'D':
      return {{}, complement_set(digit_set())};
    case 'h':
      return {{}, hex_digit_set()};
    case 'H':
      return {{}, complement_set(hex_digit_set())};
    case 'w':
      return {{}, in_class ? word_set() : bare_word_set()};
    case 'W':
      return {{}, complement_set(in_class ? word_set() : bare_word_set())};
    case 'p':
      return {{}, property(false)};
    case 'P':
      return {{}, property(true)};
    default:
      return {};
  }
}

// \xHH, \x{H...} or \uHHHH, behind the letter.
char32_t Translator::hex(std::size_t most_digits) {
  const bool braced = most_digits == 2 && take("{");
  if (braced) most_digits = 8;
  std::uint64_t value = 0;
  std::size_t digits = 0;
  for (; digits < most_digits; ++digits) {
    const std::size_t digit = std::string_view("0123456789abcdef").find(peek() | 0x20);
    if (at_end() || digit == std::string_view::npos || (!is_letter(peek()) && !is_digit(peek()))) {
      break;
    }
    value = value << 4 | digit;
    ++at_;
  }
  const bool complete = braced ? take("}") && digits > 0 : digits == most_digits;
  if (!complete) refuse("a character number that is cut off");
  // Two digits are a byte in Oniguruma, half a character above 127.
  if (!braced && most_digits == 2 && value > 0x7F) refuse("\\x with a byte above 7F");
  if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) refuse("a number of no character");
  return static_cast<char32_t>(value);
}

CharSet Translator::property(bool negated) {
  const std::size_t end = peek() == '{' ? pattern_.find('}', at_) : std::string_view::npos;
  if (end == std::string_view::npos) refuse("a property without its {name}");
  std::string_view name = pattern_.substr(at_ + 1, end - at_ - 1);
  if (name.starts_with('^')) {
    negated = !negated;
    name.remove_prefix(1);
  }
  const std::optional<CharSet> set = property_set(name);
  if (!set) refuse("a property that is neither a general category nor a common script");
  at_ = end + 1;
  return negated ? complement_set(*set) : *set;
}

void Translator::add_range(CharSet& set, char32_t first, char32_t last) {
  if (first > last) refuse("an empty range of characters");
  if (flags_.caseless && last >= 0x80 && !(first == last && is_caseless(first))) {
    refuse("non-ASCII letters in a class under (?i)");
  }
  set.items += literal_pattern(first);
  if (first != last) set.items += "-" + literal_pattern(last);
}

// Behind the [ or [^, up to and with the ].
CharSet Translator::bracket() {
  if (++nesting_ > kMostNesting) refuse("classes nested deeper than 50 levels");
  CharSet set = bracket_union(true);
  while (take("&&")) set = intersect_sets(set, bracket_union(false));
  if (!take("]")) refuse("a [ without its ]");
  --nesting_;
  return set;
}

CharSet Translator::bracket_union(bool first_in_bracket) {
  CharSet set;
  const std::size_t start = at_;
  while (!at_end() && !pattern_.substr(at_).starts_with("&&")) {
    if (peek() == ']' && (at_ != start || !first_in_bracket)) break;
    if (pattern_.substr(at_).starts_with("[:")) refuse("a POSIX class");
    if (take("[")) {
      const bool negated = take("^");
      const CharSet inner = bracket();
      add_to_set(set, negated ? complement_set(inner) : inner);
      continue;
    }
    const bool is_hyphen = peek() == '-';
    if (is_hyphen && at_ != start && peek(1) != ']') refuse("a - that makes no range");
    const Member first = peek() == '\\' ? member(true) : Member{next_code_point(pattern_, at_), {}};
    if (!first.character) {
      add_to_set(set, first.set);
      continue;
    }
    char32_t last = *first.character;
    if (peek() == '-' && peek(1) != ']' && !is_hyphen) {
      ++at_;
      if (at_end() || peek() == '[') refuse("a range without its end");
      const Member second =
          peek() == '\\' ? member(true) : Member{next_code_point(pattern_, at_), {}};
      if (!second.character) refuse("a range that ends in a set");
      last = *second.character;
    }
    add_range(set, *first.character, last);
  }
  if (set.items.empty() && set.atoms.empty()) refuse("an empty class");
  return set;
}

std::string Translator::class_pattern(const CharSet& set, bool negated) const {
  if (!flags_.caseless) return set_pattern(set, negated);
  if (set.is_case_sensitive || (set.has_letters && !negated)) {
    refuse("a class under (?i) that Oniguruma would widen");
  }
  CharSet widened = set;
  widened.items += set.other_cases;
  return set_pattern(widened, negated);
}

}  // namespace

std::string translate_oniguruma(std::string_view pattern, const std::string& origin) {
  return Translator(pattern, origin).run();
}

}  // namespace mamba3
