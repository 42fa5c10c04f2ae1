// Regular expressions over UTF-8 text, as the tokenizers library runs them.
#pragma once

#include <chrono>
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

// The time that regexes may take on one text altogether. An exception ends what takes longer.
class RegexDeadline {
 public:
  explicit RegexDeadline(std::size_t text_bytes);
  // Looks at the clock now and then. True when the time is over.
  bool tick() { return ++ticks_ % kTicksPerLook == 0 && passed(); }
  bool passed() const { return std::chrono::steady_clock::now() > end_; }

 private:
  static constexpr std::uint32_t kTicksPerLook = 16;
  std::chrono::steady_clock::time_point end_;
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
