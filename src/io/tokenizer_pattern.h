// Regular expressions of tokenizer files, written for Oniguruma, in the words of PCRE2.
#pragma once

#include <string>
#include <string_view>

namespace mamba3 {

// The callout number that stands before every part whose scanning PCRE2's match limit does not
// count.
inline constexpr int kUncountedCallout = 1;

// For PCRE2 with UTF. Keeps Oniguruma's meaning (its Ruby syntax, its Unicode) to the character;
// refuses, with the position, what is no such regex and the few things that cannot be kept.
// `origin` names the regex in messages.
std::string translate_oniguruma(std::string_view pattern, const std::string& origin);

}  // namespace mamba3
