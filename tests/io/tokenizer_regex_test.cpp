// Regexes keep Oniguruma's meaning. The expected pieces are those that tokenizers 0.23.3 finds.
#include "io/tokenizer_regex.h"

#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <vector>

#include "io/tokenizer_pattern.h"
#include "mamba3/error.h"

namespace mamba3 {
namespace {

using Pieces = std::vector<std::string>;

Pieces find_all(const Regex& regex, std::string_view text) {
  Pieces out;
  RegexDeadline deadline(text.size());
  for (RegexMatches match(regex, text, deadline); match.next();) {
    out.emplace_back(text.substr(match.begin(), match.end() - match.begin()));
  }
  return out;
}

Pieces find_all(const std::string& pattern, std::string_view text) {
  return find_all(Regex::from_oniguruma(pattern, "a regex"), text);
}

std::string refusal(const std::string& pattern) {
  try {
    Regex::from_oniguruma(pattern, "a regex");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBadInput);
    return error.what();
  }
  return "accepted";
}

TEST(TokenizerRegex, Repeats) {
  EXPECT_EQ(find_all("a{1,3}+", "aaaaaaa"), (Pieces{"aaaaaaa"}));   // repeated, not possessive
  EXPECT_EQ(find_all("a{2}?", "aaaaa"), (Pieces{"aa", "aa", ""}));  // optional, not lazy
  EXPECT_EQ(find_all("a{1,2}?", "aaa"), (Pieces{"a", "a", "a"}));
  EXPECT_EQ(find_all("a{,2}b", "aaab"), (Pieces{"aab"}));
  EXPECT_EQ(find_all("a++a|b", "aab"), (Pieces{"b"}));
  EXPECT_EQ(find_all("a{x}", "a{x}"), (Pieces{"a{x}"}));
  EXPECT_EQ(find_all("x{,}", "x{,}"), (Pieces{"x{,}"}));
}

TEST(TokenizerRegex, EmptyMatches) {
  EXPECT_EQ(find_all("x*", "axxb"), (Pieces{"", "xx", ""}));
  EXPECT_EQ(find_all("(?=a)", "ba"), (Pieces{""}));
}

TEST(TokenizerRegex, Options) {
  EXPECT_EQ(find_all("x(?i)a|b", "xAB b xB"), (Pieces{"xA", "xB"}));
  EXPECT_EQ(find_all("(?i)ab|cd", "ABCDabcd"), (Pieces{"AB", "CD", "ab", "cd"}));
  EXPECT_EQ(find_all("(?m).+", "a\nb"), (Pieces{"a\nb"}));
  EXPECT_EQ(find_all(".", "a\r\n\u0085"), (Pieces{"a", "\r", "\u0085"}));
  EXPECT_EQ(find_all("(?i:'s)", "'S 's '\u017F"), (Pieces{"'S", "'s", "'\u017F"}));
  EXPECT_EQ(find_all("(?i:k(?-i:x))", "Kx KX \u212Ax"), (Pieces{"Kx", "\u212Ax"}));
  EXPECT_EQ(find_all("(?i:[^\\p{L}])", "\u0345 a"), (Pieces{" "}));
  EXPECT_EQ(find_all("(?i:\\p{Lu})", "aA"), (Pieces{"A"}));
}

TEST(TokenizerRegex, Anchors) {
  EXPECT_EQ(find_all("a$", "a\na"), (Pieces{"a", "a"}));
  EXPECT_EQ(find_all("^a", "a\na"), (Pieces{"a", "a"}));
  EXPECT_EQ(find_all("a\\Z", "a\na\n"), (Pieces{"a"}));
  EXPECT_EQ(find_all("\\bfoo\\b", "foo foox"), (Pieces{"foo"}));
  EXPECT_EQ(find_all("(?<!a)b", "ab cb"), (Pieces{"b"}));
}

TEST(TokenizerRegex, Classes) {
  EXPECT_EQ(find_all("[a-c&&[^b]]+", "abc"), (Pieces{"a", "c"}));
  EXPECT_EQ(find_all("[^a[bc]]+", "abcd"), (Pieces{"d"}));
  EXPECT_EQ(find_all("[]a]", "a]"), (Pieces{"a", "]"}));
  EXPECT_EQ(find_all("[a-]+", "a-b"), (Pieces{"a-"}));
  EXPECT_EQ(find_all("[^\\S\\n]+", " \t\n"), (Pieces{" \t"}));
  EXPECT_EQ(find_all("[^\\P{L}]", "a1"), (Pieces{"a"}));
  EXPECT_EQ(find_all("\\h", "afg"), (Pieces{"a", "f"}));
  EXPECT_EQ(find_all("\\v", "\v\n"), (Pieces{"\v"}));
  EXPECT_EQ(find_all("\\x{1F600}\\u0041\\x42", "\U0001F600AB"), (Pieces{"\U0001F600AB"}));
  EXPECT_EQ(find_all("\\p{^L}|\\p{uppercase letter}", "1aB"), (Pieces{"1", "B"}));
  EXPECT_EQ(find_all("\\p{Han}+", "a\u4E00\u3007\u3001"), (Pieces{"\u4E00\u3007"}));
}

TEST(TokenizerRegex, UnicodeOfTheReference) {
  // White space: U+0085 is, U+180E is not.
  EXPECT_EQ(find_all("\\s", "\u0085\u180E\u3000"), (Pieces{"\u0085", "\u3000"}));
  // Letters, digits and marks of Unicode 15 and 16; U+0378 is none.
  EXPECT_EQ(find_all("\\p{L}+", "\U00031350\U00010D4A\u1C89\u0378").size(), 1u);
  EXPECT_EQ(find_all("[^\\p{L}\\p{N}]", "\U00031350\U0001CCF0\u0378"), (Pieces{"\u0378"}));
  EXPECT_EQ(find_all("\\p{Cn}", "\U00031350\u0378"), (Pieces{"\u0378"}));
  EXPECT_EQ(find_all("\\p{Mn}|\\P{M}", "\u0897\U0001171E"), (Pieces{"\u0897"}));
  EXPECT_EQ(find_all("\\w", "\u24B6\u0345_\u00B2"), (Pieces{"\u24B6", "\u0345", "_", "\u00B2"}));
  EXPECT_EQ(find_all("[\\w]", "\u24B6\u00B2"), (Pieces{"\u24B6"}));
}

TEST(TokenizerRegex, RefusesByName) {
  EXPECT_NE(refusal("(a").find("a ( without its )"), std::string::npos);
  EXPECT_NE(refusal("a)").find("an unmatched )"), std::string::npos);
  EXPECT_NE(refusal("[a").find("a [ without its ]"), std::string::npos);
  EXPECT_NE(refusal("*a").find("a repeat of nothing"), std::string::npos);
  EXPECT_NE(refusal("a**").find("a repeat of a repeat"), std::string::npos);
  EXPECT_NE(refusal("(?:a*)*").find("may match nothing"), std::string::npos);
  EXPECT_NE(refusal("a{2,1}").find("reversed"), std::string::npos);
  EXPECT_NE(refusal("a{5000}").find("more than 1000"), std::string::npos);
  EXPECT_NE(refusal("(?<n>a)").find("a group of an unknown kind"), std::string::npos);
  EXPECT_NE(refusal("(a)\\1").find("an escape of an unknown kind"), std::string::npos);
  EXPECT_NE(refusal("\\p{Emoji}").find("a property"), std::string::npos);
  EXPECT_NE(refusal("[[:alpha:]]").find("a POSIX class"), std::string::npos);
  EXPECT_NE(refusal("[z-a]").find("an empty range"), std::string::npos);
  EXPECT_NE(refusal("\\x{110000}").find("a number of no character"), std::string::npos);
  EXPECT_NE(refusal("(?i:ss)").find("ff, fi, fl, ss or st"), std::string::npos);
  EXPECT_NE(refusal("(?i:[\\p{L}])").find("would widen"), std::string::npos);
  EXPECT_NE(refusal("^*").find("a repeated anchor"), std::string::npos);
  EXPECT_NE(refusal("").find("is empty"), std::string::npos);
  EXPECT_NE(refusal("a\\").find("at the end"), std::string::npos);
  EXPECT_NE(refusal(std::string(60, '(') + "a" + std::string(60, ')')).find("50"),
            std::string::npos);
  EXPECT_NE(refusal("(?<=a+)b").find("cannot be used"), std::string::npos);
}

void expect_soon_refused(const std::string& pattern, const std::string& text) {
  const std::clock_t start = std::clock();
  EXPECT_THROW(find_all(pattern, text), Error) << pattern;
  EXPECT_LT(std::clock() - start, 9 * CLOCKS_PER_SEC) << pattern;
}

TEST(TokenizerRegex, TakesNoUnboundedTime) {
  expect_soon_refused("(a|aa)+$", std::string(100, 'a') + "b");
  expect_soon_refused("(?:a+)+\\d", std::string(60, 'a'));
  // Below the limit of steps in each search, but one search a byte.
  expect_soon_refused("a*b|.", std::string(200'000, 'a'));
  // Look-ahead and possessive repeats scan without steps.
  expect_soon_refused("a*(?=a*+\\d)", std::string(200'000, 'a'));
}

TEST(TokenizerRegex, LongRepeatsNeedNoDeepStack) {
  const std::string text(1'000'000, 'a');
  EXPECT_EQ(find_all("(?:a|b)+", text), (Pieces{text}));
  EXPECT_EQ(find_all("[\\S\\n]+", text), (Pieces{text}));
}

TEST(TokenizerRegex, LiteralsAreNoRegexes) {
  EXPECT_EQ(find_all(Regex::from_literal("a.", "a string"), "ab a. a."), (Pieces{"a.", "a."}));
  EXPECT_THROW(Regex::from_literal("", "a string"), Error);
}

}  // namespace
}  // namespace mamba3
