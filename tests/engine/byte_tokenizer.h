// A tokenizer that can be seen through: one id a byte, and 256 in front when special ids are asked
// for.
#pragma once

#include <string>
#include <vector>

#include "mamba3/tokenizer.h"

namespace mamba3 {

class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(bool has_bos = true) : has_bos_(has_bos) {}

  std::vector<std::int32_t> encode(std::string_view text, bool add_special) const override {
    std::vector<std::int32_t> ids;
    if (add_special && has_bos_) ids.push_back(256);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const override {
    std::string text;
    for (const std::int32_t id : ids) text += token_bytes(id, skip_special);
    return text;
  }
  std::string token_bytes(std::int32_t id, bool skip_special) const override {
    if (id == 256) return skip_special ? "" : "<end>";
    return std::string(1, static_cast<char>(id));
  }
  std::int64_t vocab() const override { return 257; }
  std::optional<std::int32_t> token_id(std::string_view token) const override {
    return token == "<end>" ? std::optional<std::int32_t>(256) : std::nullopt;
  }
  std::optional<std::int32_t> end_of_text() const override { return 256; }

 private:
  bool has_bos_;
};

}  // namespace mamba3
