#include "train/token_selection.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/check.h"
#include "core/hash.h"

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
  auto run = std::ranges::upper_bound(runs_, begin, {}, &Run::begin);
  while (!ids.empty()) {
    const std::int64_t end = run == runs_.end() ? tokens_ : run->begin;
    const Run& here = *std::prev(run);
    const auto count = static_cast<std::size_t>(std::min(end - begin, std::ssize(ids)));
    cache_->copy(here.in_cache + begin - here.begin, ids.first(count));
    ids = ids.subspan(count);
    begin = end;
    if (run != runs_.end()) ++run;
  }
}

bool is_held_out_share(double share) {
  return share > 0 && (share < 1 || (std::isfinite(share) && share == std::floor(share)));
}

HeldOutSplit hold_out(std::shared_ptr<const TokenCache> cache, double share) {
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
