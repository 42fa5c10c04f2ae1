// Regular expressions over UTF-8 text, as the tokenizers library runs them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace mamba3 {

class Regex {
 public:
  // `origin` names the regex in messages.
  static Regex from_oniguruma(std::string_view pattern, const std::string& origin);
  static Regex from_literal(std::string_view text, const std::string& origin);
  // A pattern of our own.
  static Regex from_pcre2(std::string_view pattern, const std::string& origin);

 private:
  friend class RegexMatches;
  Regex(std::string_view pattern, std::uint32_t options, const std::string& origin);

  std::shared_ptr<const void> code_;
  std::string origin_;
};

// The processor time that regexes may take on one text altogether, in the thread that made this. An
// exception ends what takes longer.
class RegexDeadline {
 public:
  explicit RegexDeadline(std::size_t text_bytes);
  // True when the time is over; looks at the clock now and then.
  bool tick() { return ++ticks_ % kTicksPerLook == 0 && passed(); }

 private:
  static constexpr std::uint32_t kTicksPerLook = 16;
  bool passed() const;

  std::int64_t end_us_;
  std::uint32_t ticks_ = 0;
};

// All matches in well-formed text, from left to right, none overlapping another; an empty match
// directly behind a match does not count.
class RegexMatches {
 public:
  RegexMatches(const Regex& regex, std::string_view text, RegexDeadline& deadline)
      : regex_(regex), text_(text), deadline_(deadline) {}
  bool next();
  std::size_t begin() const { return begin_; }
  std::size_t end() const { return end_; }

 private:
  bool search();
  [[noreturn]] void refuse_effort() const;

  const Regex& regex_;
  std::string_view text_;
  RegexDeadline& deadline_;
  std::size_t at_ = 0;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  bool matched_ = false;  // before, at [begin_, end_)
};

}  // namespace mamba3
