// Texts of tests as tokens: one for each byte.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../io/file_test_util.h"
#include "mamba3/tokenizer.h"
#include "train/token_cache.h"

namespace mamba3 {

// A token for each byte, and 256 in front.
class Bytes : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text, bool) const override {
    std::vector<std::int32_t> ids{256};
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const std::int32_t>, bool) const override { return {}; }
  std::string token_bytes(std::int32_t, bool) const override { return {}; }
  std::int64_t vocab() const override { return 257; }
  std::optional<std::int32_t> token_id(std::string_view) const override { return {}; }
  std::optional<std::int32_t> end_of_text() const override { return {}; }
};

// Written to the folder as "text.txt", encoded as "cache", with the fingerprint 1.
inline std::shared_ptr<const TokenCache> cache_of_text(const TempFolder& folder,
                                                       const std::string& text) {
  write_text(folder / "text.txt", text);
  ThreadPool pool(1);
  TokenCache::build({{folder / "text.txt"}, {}}, Bytes(), 1, folder / "cache", pool);
  return TokenCache::open(folder / "cache", 1);
}

}  // namespace mamba3
