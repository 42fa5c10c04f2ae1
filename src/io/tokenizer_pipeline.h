// A tokenizer put together from its parts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer_added.h"
#include "io/tokenizer_bpe.h"
#include "io/tokenizer_normalizer.h"
#include "io/tokenizer_post.h"
#include "io/tokenizer_split.h"
#include "mamba3/tokenizer.h"

namespace mamba3 {

struct TokenizerParts {
  BpeModel model;
  std::vector<AddedToken> added;                 // with ids; normalized_content is filled in here
  std::unique_ptr<const Normalizer> normalizer;  // null: none
  PreTokenizer pre_tokenizer;
  Surroundings surroundings;
  Decoding decoding = Decoding::kBytes;
};

class PipelineTokenizer : public Tokenizer {
 public:
  PipelineTokenizer(TokenizerParts parts, const std::string& origin);

  std::vector<std::int32_t> encode(std::string_view text, bool add_special) const override;
  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const override;
  std::string token_bytes(std::int32_t id, bool skip_special) const override;
  std::int64_t vocab() const override;
  std::optional<std::int32_t> token_id(std::string_view token) const override;
  std::optional<std::int32_t> end_of_text() const override;

 private:
  void encode_text(std::string_view text, RegexDeadline& deadline, BpeModel::Scratch& scratch,
                   std::vector<std::int32_t>& ids) const;
  // Nothing for a special token that is left out.
  std::optional<std::string> shown(std::int32_t id, bool skip_special) const;

  BpeModel model_;
  AddedTokens added_;
  std::unique_ptr<const Normalizer> normalizer_;
  PreTokenizer pre_tokenizer_;
  Surroundings surroundings_;
  Decoding decoding_;
};

}  // namespace mamba3
