#include "io/tokenizer_bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "core/check.h"

namespace mamba3 {

namespace {

constexpr std::uint64_t kNoPair = ~std::uint64_t{0};

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

// Lowest rank first, then leftmost: the order in which merges happen.
bool comes_later(const BpeModel::Scratch::Candidate& a, const BpeModel::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

void TokenTable::reserve(std::size_t tokens, std::size_t text_bytes) {
  entries_.reserve(tokens);
  pool_.reserve(text_bytes);
  slots_.assign(std::bit_ceil(2 * tokens + 2), -1);
}

TokenText TokenTable::text_of(const Entry& entry) const {
  return {std::string_view(pool_).substr(entry.begin, entry.bytes), entry.is_literal != 0};
}

// Where the text is, or would go.
std::size_t TokenTable::slot_of(std::string_view text, bool is_literal) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = std::hash<std::string_view>()(text) & mask;
  while (slots_[slot] >= 0) {
    const TokenText found = text_of(entries_[static_cast<std::size_t>(slots_[slot])]);
    if (found.text == text && found.is_literal == is_literal) break;
    slot = (slot + 1) & mask;
  }
  return slot;
}

void TokenTable::grow() {
  slots_.assign(std::max<std::size_t>(2 * slots_.size(), 16), -1);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const TokenText token = text_of(entries_[i]);
    slots_[slot_of(token.text, token.is_literal)] = static_cast<std::int32_t>(i);
  }
}

bool TokenTable::add(std::string_view text, bool is_literal, std::int32_t id) {
  if (2 * (entries_.size() + 1) > slots_.size()) grow();
  const std::size_t slot = slot_of(text, is_literal);
  if (slots_[slot] >= 0) return false;
  slots_[slot] = static_cast<std::int32_t>(entries_.size());
  entries_.push_back({static_cast<std::uint32_t>(pool_.size()),
                      static_cast<std::uint32_t>(text.size()) & 0x7FFFFFFF, is_literal ? 1U : 0U,
                      id});
  pool_ += text;
  largest_id_ = std::max(largest_id_, id);
  longest_bytes_ = std::max(longest_bytes_, text.size());
  return true;
}

std::optional<std::int32_t> TokenTable::index_ids() {
  entry_of_.assign(static_cast<std::size_t>(largest_id_) + 1, -1);
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    std::int32_t& entry = entry_of_[static_cast<std::size_t>(entries_[i].id)];
    if (entry >= 0) return entries_[i].id;
    entry = static_cast<std::int32_t>(i);
  }
  return std::nullopt;
}

std::optional<std::int32_t> TokenTable::find(std::string_view text, bool is_literal) const {
  if (slots_.empty()) return std::nullopt;
  const std::int32_t entry = slots_[slot_of(text, is_literal)];
  if (entry < 0) return std::nullopt;
  return entries_[static_cast<std::size_t>(entry)].id;
}

std::optional<TokenText> TokenTable::text_of(std::int32_t id) const {
  if (id < 0 || id > largest_id_ || entry_of_[static_cast<std::size_t>(id)] < 0) {
    return std::nullopt;
  }
  return text_of(entries_[static_cast<std::size_t>(entry_of_[static_cast<std::size_t>(id)])]);
}

MergeTable::MergeTable(std::size_t merges)
    : slots_(std::bit_ceil(merges + merges / 3 + 2), Slot{kNoPair, {}}) {}

std::size_t MergeTable::slot_of(std::uint64_t pair) const {
  const std::size_t mask = slots_.size() - 1;
  const std::uint64_t mixed = (pair ^ pair >> 32) * 0x9E3779B97F4A7C15;
  std::size_t slot = (mixed ^ mixed >> 32) & mask;
  while (slots_[slot].pair != kNoPair && slots_[slot].pair != pair) slot = (slot + 1) & mask;
  return slot;
}

void MergeTable::set(std::int32_t left, std::int32_t right, Merge merge) {
  const std::uint64_t pair = pair_key(left, right);
  slots_[slot_of(pair)] = {pair, merge};
}

const MergeTable::Merge* MergeTable::find(std::int32_t left, std::int32_t right) const {
  const Slot& slot = slots_[slot_of(pair_key(left, right))];
  return slot.pair == kNoPair ? nullptr : &slot.merge;
}

BpeModel::BpeModel(TokenTable tokens, std::optional<MergeTable> merges, bool ignore_merges)
    : tokens_(std::move(tokens)), merges_(std::move(merges)), ignore_merges_(ignore_merges) {
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    const char text = static_cast<char>(byte);
    byte_ids_[byte] = tokens_.find({&text, 1}, false).value_or(-1);
  }
}

bool BpeModel::has_every_byte() const {
  return std::find(byte_ids_.begin(), byte_ids_.end(), -1) == byte_ids_.end();
}

// Of the symbol at the position and the next one.
std::optional<MergeTable::Merge> BpeModel::find_merge(std::string_view word, const Scratch& scratch,
                                                      std::int32_t position) const {
  const auto& symbols = scratch.symbols;
  const Scratch::Symbol& left = symbols[static_cast<std::size_t>(position)];
  if (left.id < 0 || left.next < 0) return std::nullopt;
  const Scratch::Symbol& right = symbols[static_cast<std::size_t>(left.next)];
  if (merges_) {
    const MergeTable::Merge* merge = merges_->find(left.id, right.id);
    return merge == nullptr ? std::nullopt : std::optional(*merge);
  }
  const auto begin = static_cast<std::size_t>(position);
  const std::size_t end = right.next < 0 ? word.size() : static_cast<std::size_t>(right.next);
  if (end - begin > tokens_.longest_bytes()) return std::nullopt;
  const std::optional<std::int32_t> id = tokens_.find(word.substr(begin, end - begin), false);
  if (!id) return std::nullopt;
  return MergeTable::Merge{static_cast<std::uint32_t>(*id), *id};
}

void BpeModel::merge_all(std::string_view word, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& queue = scratch.queue;
  queue.clear();
  const auto push = [&, this](std::int32_t position) {
    const std::optional<MergeTable::Merge> merge = find_merge(word, scratch, position);
    if (merge) queue.push_back({merge->rank, position, merge->id});
    return merge.has_value();
  };
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) push(static_cast<std::int32_t>(i));
  std::make_heap(queue.begin(), queue.end(), comes_later);
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), comes_later);
    const Scratch::Candidate best = queue.back();
    queue.pop_back();
    // Either side may have changed since; then the pair is no longer what was queued.
    const std::optional<MergeTable::Merge> merge = find_merge(word, scratch, best.position);
    if (!merge || merge->id != best.id) continue;
    Scratch::Symbol& left = symbols[static_cast<std::size_t>(best.position)];
    Scratch::Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    left.id = best.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = best.position;
    for (const std::int32_t position : {left.previous, best.position}) {
      if (position >= 0 && push(position)) std::push_heap(queue.begin(), queue.end(), comes_later);
    }
  }
}

void BpeModel::encode(std::string_view word, Scratch& scratch,
                      std::vector<std::int32_t>& ids) const {
  if (ignore_merges_) {
    if (const std::optional<std::int32_t> whole = tokens_.find(word, false)) {
      ids.push_back(*whole);
      return;
    }
  }
  check_input(word.size() <= kMostWordBytes, "a word of ", word.size(),
              " bytes in the text; expected at most ", kMostWordBytes, "; cut the text");
  auto& symbols = scratch.symbols;
  symbols.clear();
  for (const char byte : word) {
    const std::int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
    if (id < 0) continue;
    const auto position = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({id, position - 1, position + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  merge_all(word, scratch);
  for (const Scratch::Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
}

}  // namespace mamba3
