// Byte-pair encoding: a vocabulary and the merges that lead to its tokens.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mamba3 {

// A token's text: bytes, or (is_literal) text with a character that no byte is written as, which
// can never come out of encoding.
struct TokenText {
  std::string_view text;
  bool is_literal = false;
};

// Token texts one behind another, found by text.
class TokenTable {
 public:
  void reserve(std::size_t tokens, std::size_t text_bytes);
  // False if the text is there already.
  bool add(std::string_view text, bool is_literal, std::int32_t id);
  // After the last add. An id that two tokens have, if any.
  std::optional<std::int32_t> index_ids();

  std::optional<std::int32_t> find(std::string_view text, bool is_literal) const;
  std::optional<TokenText> text_of(std::int32_t id) const;
  std::int64_t size() const { return static_cast<std::int64_t>(entries_.size()); }
  std::int32_t largest_id() const { return largest_id_; }
  std::size_t longest_bytes() const { return longest_bytes_; }

 private:
  struct Entry {  // texts make up less than 2 GiB
    std::uint32_t begin;
    std::uint32_t bytes : 31;
    std::uint32_t is_literal : 1;
    std::int32_t id;
  };
  TokenText text_of(const Entry& entry) const;
  std::size_t slot_of(std::string_view text, bool is_literal) const;
  void grow();

  std::string pool_;
  std::vector<Entry> entries_;
  std::vector<std::int32_t> slots_;     // hash table of entries, -1 for none; a power of two
  std::vector<std::int32_t> entry_of_;  // by id, -1 for none
  std::int32_t largest_id_ = -1;
  std::size_t longest_bytes_ = 0;
};

// (left id, right id) -> rank and new id.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank;
    std::int32_t id;
  };
  explicit MergeTable(std::size_t merges = 0);
  // A pair that is there already is replaced.
  void set(std::int32_t left, std::int32_t right, Merge merge);
  const Merge* find(std::int32_t left, std::int32_t right) const;

 private:
  struct Slot {
    std::uint64_t pair;
    Merge merge;
  };
  std::size_t slot_of(std::uint64_t pair) const;
  std::vector<Slot> slots_;  // a power of two, a quarter of it free
};

class BpeModel {
 public:
  // ignore_merges: a word that is a token stays whole. Without a table of merges, neighbours merge
  // when their bytes together are a token, that of the lowest id first; every byte must be a token.
  BpeModel(TokenTable tokens, std::optional<MergeTable> merges, bool ignore_merges);

  // Working memory of one thread.
  struct Scratch {
    struct Symbol {     // one a byte
      std::int32_t id;  // -1: merged into the one before
      std::int32_t previous;
      std::int32_t next;
    };
    struct Candidate {
      std::uint32_t rank;
      std::int32_t position;
      std::int32_t id;  // what the pair becomes
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;
  };
  // Appends the ids of one word of at most kMostWordBytes. A byte without a token is left out.
  void encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;

  const TokenTable& tokens() const { return tokens_; }
  bool has_every_byte() const;

  static constexpr std::size_t kMostWordBytes = std::size_t{1} << 30;

 private:
  std::optional<MergeTable::Merge> find_merge(std::string_view word, const Scratch& scratch,
                                              std::int32_t position) const;
  void merge_all(std::string_view word, Scratch& scratch) const;

  TokenTable tokens_;
  std::optional<MergeTable> merges_;
  bool ignore_merges_;
  std::array<std::int32_t, 256> byte_ids_;
};

}  // namespace mamba3
