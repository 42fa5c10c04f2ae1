#include "io/tokenizer_pipeline.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_letters.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {

namespace {

// By which the styles that we read end a text; the first that a vocabulary has counts.
constexpr std::string_view kEndOfText[] = {"<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"};

std::vector<AddedToken> with_normalized_content(std::vector<AddedToken> tokens,
                                                const Normalizer* normalizer,
                                                const std::string& origin) {
  for (AddedToken& token : tokens) {
    RegexDeadline deadline(token.content.size());
    token.normalized_content = token.normalized && normalizer != nullptr
                                   ? normalizer->apply(token.content, deadline)
                                   : token.content;
    check_input(!token.normalized_content.empty(), origin, ": the added token ",
                quote(token.content), " is empty when normalized; expected some text");
  }
  return tokens;
}

class Encoder : public WordSink {
 public:
  Encoder(const BpeModel& model, BpeModel::Scratch& scratch, std::vector<std::int32_t>& ids)
      : model_(model), scratch_(scratch), ids_(ids) {}
  void take(std::string_view word) override { model_.encode(word, scratch_, ids_); }

 private:
  const BpeModel& model_;
  BpeModel::Scratch& scratch_;
  std::vector<std::int32_t>& ids_;
};

}  // namespace

PipelineTokenizer::PipelineTokenizer(TokenizerParts parts, const std::string& origin)
    : model_(std::move(parts.model)),
      added_(with_normalized_content(std::move(parts.added), parts.normalizer.get(), origin),
             origin + ": added_tokens"),
      normalizer_(std::move(parts.normalizer)),
      pre_tokenizer_(std::move(parts.pre_tokenizer)),
      surroundings_(std::move(parts.surroundings)),
      decoding_(parts.decoding) {
  for (const auto* side : {&surroundings_.before, &surroundings_.after}) {
    for (const std::int32_t id : *side) {
      check_input(added_.by_id(id) != nullptr || model_.tokens().text_of(id).has_value(), origin,
                  ": the post_processor adds the id ", id,
                  ", which no token has; expected ids of the vocabulary");
    }
  }
}

std::vector<std::int32_t> PipelineTokenizer::encode(std::string_view text, bool add_special) const {
  const std::size_t ill_formed = find_ill_formed(text);
  check_input(ill_formed == std::string_view::npos, "the text is not UTF-8: byte ", ill_formed,
              " of ", text.size(), " begins no character; expected UTF-8; convert the text");
  std::vector<std::int32_t> ids;
  BpeModel::Scratch scratch;
  RegexDeadline deadline(text.size());
  if (add_special) ids = surroundings_.before;
  for (const AddedTokenFinder::Piece& piece : added_.in_raw_text().split(text)) {
    if (piece.token != nullptr) {
      ids.push_back(piece.token->id);
    } else if (normalizer_ != nullptr) {
      encode_text(normalizer_->apply(piece.text, deadline), deadline, scratch, ids);
    } else {
      encode_text(piece.text, deadline, scratch, ids);
    }
  }
  if (add_special) {
    ids.insert(ids.end(), surroundings_.after.begin(), surroundings_.after.end());
  }
  return ids;
}

// Text between tokens that are looked for in the raw text, normalized.
void PipelineTokenizer::encode_text(std::string_view text, RegexDeadline& deadline,
                                    BpeModel::Scratch& scratch,
                                    std::vector<std::int32_t>& ids) const {
  Encoder encoder(model_, scratch, ids);
  for (const AddedTokenFinder::Piece& piece : added_.in_normalized_text().split(text)) {
    if (piece.token != nullptr) {
      ids.push_back(piece.token->id);
    } else {
      pre_tokenizer_.split(piece.text, deadline, encoder);
    }
  }
}

std::optional<std::string> PipelineTokenizer::shown(std::int32_t id, bool skip_special) const {
  if (const AddedToken* token = added_.by_id(id)) {
    const std::string& text = token->normalized_content;
    // tokenizers compares the shown text, so a special token that was normalized stays.
    const AddedToken* same = added_.by_content(text);
    if (skip_special && same != nullptr && same->special) return std::nullopt;
    return decoding_ == Decoding::kBytes ? bytes_of_letters(text).value_or(text) : text;
  }
  const std::optional<TokenText> token = model_.tokens().text_of(id);
  check_input(token.has_value(), "id ", id, " is not in the vocabulary; expected ids from 0 to ",
              vocab() - 1, "; use the tokenizer of the model that made the ids");
  if (decoding_ == Decoding::kBytes || token->is_literal) return std::string(token->text);
  return letters_of_bytes(token->text);
}

std::string PipelineTokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string out;
  bool is_first = true;
  for (const std::int32_t id : ids) {
    const std::optional<std::string> text = shown(id, skip_special);
    if (!text) continue;
    if (decoding_ == Decoding::kBlankBetween && !is_first) out += ' ';
    out += *text;
    is_first = false;
  }
  return out;
}

std::string PipelineTokenizer::token_bytes(std::int32_t id, bool skip_special) const {
  return shown(id, skip_special).value_or("");
}

std::int64_t PipelineTokenizer::vocab() const {
  return std::int64_t{std::max(model_.tokens().largest_id(), added_.largest_id())} + 1;
}

std::optional<std::int32_t> PipelineTokenizer::token_id(std::string_view token) const {
  if (const AddedToken* added = added_.by_content(token)) return added->id;
  if (find_ill_formed(token) != std::string_view::npos) return std::nullopt;
  const std::optional<std::string> bytes = bytes_of_letters(token);
  return bytes ? model_.tokens().find(*bytes, false) : model_.tokens().find(token, true);
}

std::optional<std::int32_t> PipelineTokenizer::end_of_text() const {
  for (const std::string_view name : kEndOfText) {
    if (const std::optional<std::int32_t> id = token_id(name)) return id;
  }
  return std::nullopt;
}

}  // namespace mamba3
