// Some documents of a token cache one after the other, as if there were no others: what is trained
// on, and what is held out.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "train/token_cache.h"

namespace mamba3 {

class TokenSelection {
 public:
  // All of them.
  TokenSelection(std::shared_ptr<const TokenCache> cache);  // NOLINT: a cache is a selection
  // Those whose numbers have chosen[number] == which.
  TokenSelection(std::shared_ptr<const TokenCache> cache, const std::vector<bool>& chosen,
                 bool which);

  // The same documents in an order drawn by the seed.
  TokenSelection shuffled(std::uint64_t seed) const;

  std::int64_t tokens() const { return tokens_; }
  // Tokens [begin, begin + ids.size()).
  void copy(std::int64_t begin, std::span<std::int32_t> ids) const;
  // Tokens of [begin, end) at which documents begin, ascending. Documents without tokens are none.
  std::vector<std::int64_t> document_begins(std::int64_t begin, std::int64_t end) const;

 private:
  // Neighbouring documents.
  struct Run {
    std::int64_t begin = 0;  // its first token here
    std::int64_t in_cache = 0;
  };
  // The one that has a token, and where it ends here.
  std::vector<Run>::const_iterator run_at(std::int64_t token) const;
  std::int64_t end_of(std::vector<Run>::const_iterator run) const;
  void add(std::int64_t begin, std::int64_t end);  // tokens of the cache

  std::shared_ptr<const TokenCache> cache_;
  std::vector<Run> runs_;
  std::int64_t tokens_ = 0;
};

struct HeldOutSplit {
  TokenSelection training, held_out;
};

// Whether a share means something: a fraction of the documents between 0 and 1, or so many of them.
bool is_held_out_share(double share);
// Holds a share of the documents out (a fraction of them: at least one document): those whose
// numbers have the smallest hashes. So it is the same for every seed, and a smaller share is a part
// of a larger one. Refuses to hold out all.
HeldOutSplit hold_out(const std::shared_ptr<const TokenCache>& cache, double share);

}  // namespace mamba3
