#include "io/tokenizer_added.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_unicode.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {

namespace {

bool stands_alone(std::string_view text, std::size_t begin, std::size_t end) {
  if (begin > 0 && is_word_character(previous_code_point(text, begin))) return false;
  return end == text.size() || !is_word_character(next_code_point(text, end));
}

// Of the white space before `end`, but not before `floor`.
std::size_t white_space_begin(std::string_view text, std::size_t floor, std::size_t end) {
  std::size_t begin = end;
  while (begin > floor && is_white_space(previous_code_point(text, begin))) {
    do --begin;
    while (is_continuation_byte(text[begin]));
  }
  return begin;
}

std::size_t white_space_end(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    std::size_t next = begin;
    if (!is_white_space(next_code_point(text, next))) break;
    begin = next;
  }
  return begin;
}

}  // namespace

bool AddedTokenFinder::build(const std::vector<AddedToken>& tokens, bool normalized) {
  for (const AddedToken& token : tokens) {
    if (token.normalized == normalized) patterns_.push_back(&token);
  }
  std::sort(patterns_.begin(), patterns_.end(), [](const AddedToken* a, const AddedToken* b) {
    return a->normalized_content < b->normalized_content;
  });
  for (const AddedToken* token : patterns_) {
    begins_[static_cast<unsigned char>(token->normalized_content[0])] = true;
  }
  return std::adjacent_find(patterns_.begin(), patterns_.end(),
                            [](const AddedToken* a, const AddedToken* b) {
                              return a->normalized_content == b->normalized_content;
                            }) == patterns_.end();
}

// Narrows the sorted patterns byte by byte to those that begin like the text.
const AddedToken* AddedTokenFinder::longest_at(std::string_view text, std::size_t at) const {
  const AddedToken* longest = nullptr;
  auto low = patterns_.begin();
  auto high = patterns_.end();
  for (std::size_t depth = 0; at + depth < text.size(); ++depth) {
    const auto wanted = static_cast<unsigned char>(text[at + depth]);
    const auto byte = [depth](const AddedToken* token) {  // those in the range are long enough
      return static_cast<unsigned char>(token->normalized_content[depth]);
    };
    low = std::partition_point(low, high, [&](const auto* t) { return byte(t) < wanted; });
    high = std::partition_point(low, high, [&](const auto* t) { return byte(t) == wanted; });
    if (low == high) break;
    if ((*low)->normalized_content.size() == depth + 1) longest = *low++;
    if (low == high) break;
  }
  return longest;
}

std::vector<AddedTokenFinder::Piece> AddedTokenFinder::split(std::string_view text) const {
  std::vector<Piece> pieces;
  std::size_t done = 0;
  std::size_t stripped = 0;  // white space up to here was already looked at
  for (std::size_t at = 0; at < text.size() && !patterns_.empty();) {
    const AddedToken* token =
        begins_[static_cast<unsigned char>(text[at])] ? longest_at(text, at) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    std::size_t end = at + token->normalized_content.size();
    at = end;
    if (token->single_word && !stands_alone(text, begin, end)) continue;
    if (token->lstrip) begin = white_space_begin(text, done, begin);
    if (token->rstrip) end = stripped = white_space_end(text, std::max(end, stripped));
    if (done < begin) pieces.push_back({nullptr, text.substr(done, begin - done)});
    pieces.push_back({token, {}});
    done = end;
  }
  if (done < text.size()) pieces.push_back({nullptr, text.substr(done)});
  return pieces;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const std::string& where)
    : tokens_(std::move(tokens)) {
  for (const AddedToken& token : tokens_) {
    const bool new_content = by_content_.emplace(token.content, &token).second;
    const bool new_id = by_id_.emplace(token.id, &token).second;
    check_input(new_content && new_id, where, " has ", quote(token.content), " or its id ",
                token.id, " twice; expected different tokens with different ids");
    largest_id_ = std::max(largest_id_, token.id);
  }
  const bool all_differ = in_raw_.build(tokens_, false) && in_normalized_.build(tokens_, true);
  check_input(all_differ, where,
              " has two tokens that are the same when normalized; expected them to differ");
}

const AddedToken* AddedTokens::by_id(std::int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : found->second;
}

const AddedToken* AddedTokens::by_content(std::string_view content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? nullptr : found->second;
}

}  // namespace mamba3
