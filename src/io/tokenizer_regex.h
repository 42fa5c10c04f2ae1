// Regular expressions over UTF-8 text, as the tokenizers library runs them.
#pragma once

#include <chrono>
#include <cstddef>
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

// All matches in well-formed text, from left to right, none overlapping another; an empty match
// directly behind a match does not count.
class RegexMatches {
 public:
  RegexMatches(const Regex& regex, std::string_view text) : regex_(regex), text_(text) {}
  bool next();
  std::size_t begin() const { return begin_; }
  std::size_t end() const { return end_; }

 private:
  bool search();
  void check_clock();
  [[noreturn]] void refuse_effort() const;

  const Regex& regex_;
  std::string_view text_;
  std::size_t at_ = 0;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  bool matched_ = false;  // before, at [begin_, end_)
  std::size_t searches_ = 0;
  std::chrono::steady_clock::time_point deadline_;
};

}  // namespace mamba3
