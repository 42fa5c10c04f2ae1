#include "train/token_selection.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/check.h"
#include "core/hash.h"
#include "train/window_order.h"

namespace mamba3 {
namespace {

std::uint64_t hash_of(std::int64_t document) {
  Hash64 hash;
  hash.update(static_cast<std::uint64_t>(document));
  return hash.value();
}

std::vector<bool> smallest_hashes(std::int64_t documents, std::int64_t count) {
  std::vector<std::pair<std::uint64_t, std::int64_t>> order;
  for (std::int64_t i = 0; i < documents; ++i) order.emplace_back(hash_of(i), i);
  std::ranges::nth_element(order, order.begin() + count);
  std::vector<bool> chosen(static_cast<std::size_t>(documents));
  for (std::int64_t i = 0; i < count; ++i) chosen[order[i].second] = true;
  return chosen;
}

}  // namespace

TokenSelection::TokenSelection(std::shared_ptr<const TokenCache> cache) : cache_(std::move(cache)) {
  add(0, cache_->tokens());
}

TokenSelection::TokenSelection(std::shared_ptr<const TokenCache> cache,
                               const std::vector<bool>& chosen, bool which)
    : cache_(std::move(cache)) {
  const std::int64_t documents = cache_->documents();
  for (std::int64_t first = 0, end = 0; first < documents; first = end) {
    for (end = first + 1; end < documents && chosen[end] == chosen[first];) ++end;
    if (chosen[first] == which) add(cache_->document_begin(first), cache_->document_begin(end));
  }
}

void TokenSelection::add(std::int64_t begin, std::int64_t end) {
  runs_.push_back({tokens_, begin});
  tokens_ += end - begin;
}

void TokenSelection::copy(std::int64_t begin, std::span<std::int32_t> ids) const {
  check_input(begin >= 0 && begin + std::ssize(ids) <= tokens_, "tokens ", begin, " to ",
              begin + std::ssize(ids), " of ", tokens_, "; expected tokens of the selection");
  if (ids.empty()) return;
  for (auto run = run_at(begin); !ids.empty(); ++run) {
    const auto count = static_cast<std::size_t>(std::min(end_of(run) - begin, std::ssize(ids)));
    cache_->copy(run->in_cache + begin - run->begin, ids.first(count));
    ids = ids.subspan(count);
    begin = end_of(run);
  }
}

std::vector<TokenSelection::Run>::const_iterator TokenSelection::run_at(std::int64_t token) const {
  return std::prev(std::ranges::upper_bound(runs_, token, {}, &Run::begin));
}

std::int64_t TokenSelection::end_of(std::vector<Run>::const_iterator run) const {
  return std::next(run) == runs_.end() ? tokens_ : std::next(run)->begin;
}

std::vector<std::int64_t> TokenSelection::document_begins(std::int64_t begin,
                                                          std::int64_t end) const {
  std::vector<std::int64_t> begins;
  if (begin >= end) return begins;
  for (auto run = run_at(begin); run != runs_.end() && run->begin < end; ++run) {
    const std::int64_t to_cache = run->in_cache - run->begin;
    const std::int64_t last = std::min(end, end_of(run)) + to_cache;
    for (std::int64_t document = cache_->first_document(std::max(begin, run->begin) + to_cache);
         document < cache_->documents() && cache_->document_begin(document) < last; ++document) {
      const std::int64_t at = cache_->document_begin(document) - to_cache;
      if (begins.empty() || begins.back() < at) begins.push_back(at);
    }
  }
  return begins;
}

TokenSelection TokenSelection::shuffled(std::uint64_t seed) const {
  std::vector<std::int64_t> bounds = document_begins(0, tokens_);
  const std::int64_t documents = std::ssize(bounds);
  if (documents == 0) return *this;
  bounds.push_back(tokens_);
  TokenSelection out = *this;
  out.runs_.clear();
  out.tokens_ = 0;
  const WindowOrder order(documents, seed);
  for (std::int64_t i = 0; i < documents; ++i) {
    const std::int64_t number = order.window(i), begin = bounds[number];
    const auto run = run_at(begin);
    const std::int64_t in_cache = run->in_cache + begin - run->begin;
    out.add(in_cache, in_cache + bounds[number + 1] - begin);
  }
  return out;
}

bool is_held_out_share(double share) {
  return share > 0 && (share < 1 || (std::isfinite(share) && share == std::floor(share)));
}

HeldOutSplit hold_out(const std::shared_ptr<const TokenCache>& cache, double share) {
  check_input(is_held_out_share(share), "the share of documents that is held out is ", share,
              "; expected a fraction between 0 and 1, or a whole number of documents");
  const std::int64_t documents = cache->documents();
  const double count = share < 1 ? std::max(1.0, std::round(share * double(documents))) : share;
  check_input(count < static_cast<double>(documents), count, " of ", documents,
              " documents would be held out; expected some to train on; hold out fewer, or is the "
              "separator of documents right?");
  const auto chosen = smallest_hashes(documents, static_cast<std::int64_t>(count));
  return {TokenSelection(cache, chosen, false), TokenSelection(cache, chosen, true)};
}

}  // namespace mamba3
