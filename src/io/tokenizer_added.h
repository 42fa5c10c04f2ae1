// Added tokens: texts that get their id before anything else looks at the text around them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace mamba3 {

struct AddedToken {
  std::string content;
  std::int32_t id = 0;
  bool single_word = false;  // not beside a letter, digit or mark
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;
  bool normalized = false;  // looked for in the normalized text
  bool special = false;
  std::string normalized_content;  // what is looked for; the content if not `normalized`
};

// Finds tokens by their text: at each place the longest, from left to right, none overlapping.
class AddedTokenFinder {
 public:
  // Keeps a reference to the tokens, and looks for those of this kind. False if two have the same
  // text.
  bool build(const std::vector<AddedToken>& tokens, bool normalized);

  struct Piece {
    const AddedToken* token = nullptr;  // null: text between tokens
    std::string_view text;              // empty for a token
  };
  // The pieces that make up the text, in order. (A token that takes white space along may reach
  // into the next token's text; that one counts all the same.)
  std::vector<Piece> split(std::string_view text) const;
  bool empty() const { return patterns_.empty(); }

 private:
  const AddedToken* longest_at(std::string_view text, std::size_t at) const;

  std::vector<const AddedToken*> patterns_;  // sorted by text
  std::array<bool, 256> begins_{};           // by first byte
};

// All added tokens of a tokenizer.
class AddedTokens {
 public:
  // `tokens` have their ids. Refuses two that are looked for by the same text.
  AddedTokens(std::vector<AddedToken> tokens, const std::string& where);
  AddedTokens(const AddedTokens&) = delete;
  AddedTokens& operator=(const AddedTokens&) = delete;

  const AddedTokenFinder& in_raw_text() const { return in_raw_; }
  const AddedTokenFinder& in_normalized_text() const { return in_normalized_; }
  const AddedToken* by_id(std::int32_t id) const;
  const AddedToken* by_content(std::string_view content) const;
  std::int32_t largest_id() const { return largest_id_; }

 private:
  std::vector<AddedToken> tokens_;
  std::unordered_map<std::int32_t, const AddedToken*> by_id_;
  std::unordered_map<std::string_view, const AddedToken*> by_content_;
  AddedTokenFinder in_raw_;
  AddedTokenFinder in_normalized_;
  std::int32_t largest_id_ = -1;
};

}  // namespace mamba3
