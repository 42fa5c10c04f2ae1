// Reading tokenizer files: which kind it is, and a tokenizer.json part by part.
#include "mamba3/tokenizer.h"

#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "io/bytes.h"
#include "io/mapped_file.h"
#include "io/tokenizer_file.h"
#include "io/tokenizer_letters.h"
#include "io/tokenizer_pipeline.h"
#include "io/tokenizer_ranks.h"

namespace mamba3 {

namespace {

using nlohmann::json;

constexpr std::size_t kMostContentBytes = 512;  // of an added token

const json& part_or_null(const json& parts, const char* key) {
  static const json null;
  return parts.contains(key) ? parts.at(key) : null;
}

void require_null_or(const json& object, const char* key, const json& neutral,
                     const std::string& where) {
  check_input(is_null(object, key) || object.at(key) == neutral, where, ".", key, " is set to ",
              is_null(object, key) ? "" : quote(object.at(key).dump()),
              "; expected null; tokenizers that use it are not supported");
}

BpeModel build_model(TokenizerFile& file, const std::string& origin) {
  const json& spec = file.parts.at("model");
  const std::string where = origin + ": model";
  require_null_or(spec, "dropout", 0.0, where);
  require_null_or(spec, "continuing_subword_prefix", "", where);
  require_null_or(spec, "end_of_word_suffix", "", where);
  const std::int64_t count = file.tokens.size();
  const std::int64_t most_id = 4 * count + 65536;
  check_input(file.tokens.largest_id() <= most_id, where, ".vocab has ", count,
              " tokens and the id ", file.tokens.largest_id(), "; expected ids without large gaps");
  const std::optional<std::int32_t> twice = file.tokens.index_ids();
  check_input(!twice, where, ".vocab gives two tokens the id ", twice.value_or(0),
              "; expected different ids");
  BpeModel model(std::move(file.tokens), std::move(file.merges),
                 json_bool_or(spec, "ignore_merges", false, where));
  if (!model.has_every_byte()) {  // else there is nothing unknown
    require_null_or(spec, "unk_token", nullptr, where);
    require_null_or(spec, "byte_fallback", false, where);
  }
  return model;
}

// The ids that tokenizers gives: the vocabulary's, or the next free one. A file that says otherwise
// was not written by it.
std::vector<AddedToken> read_added_tokens(const json& spec, const TokenTable& tokens,
                                          const std::string& where) {
  std::vector<AddedToken> added;
  if (spec.is_null()) return added;
  check_input(spec.is_array(), where, " is ", spec.type_name(), "; expected a list");
  auto next_id = static_cast<std::int32_t>(tokens.size());
  for (const json& entry : spec) {
    AddedToken token;
    token.content = json_string(entry, "content", where);
    if (token.content.empty()) continue;
    check_input(token.content.size() <= kMostContentBytes, where, " has a token of ",
                token.content.size(), " bytes; expected at most ", kMostContentBytes);
    const std::int32_t declared = json_token_id(json_member(entry, "id", where), where);
    const std::optional<std::string> bytes = bytes_of_letters(token.content);
    const std::optional<std::int32_t> known =
        bytes ? tokens.find(*bytes, false) : tokens.find(token.content, true);
    token.id = known ? *known : next_id++;
    check_input(token.id == declared, where, " gives ", quote(token.content), " the id ", declared,
                "; expected ", token.id, known ? ", as in model.vocab" : ", the next free one");
    token.single_word = json_bool(entry, "single_word", where);
    token.lstrip = json_bool(entry, "lstrip", where);
    token.rstrip = json_bool(entry, "rstrip", where);
    token.normalized = json_bool(entry, "normalized", where);
    token.special = json_bool(entry, "special", where);
    added.push_back(std::move(token));
  }
  return added;
}

std::string_view without_blank_front(std::string_view text) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin);
}

std::shared_ptr<const Tokenizer> parse_json_text(std::string_view text, const std::string& origin) {
  TokenizerFile file = read_tokenizer_file(text, origin);
  const json& parts = file.parts;
  check_input(is_null(parts, "version") || parts.at("version") == "1.0", origin,
              " has another version than 1.0; expected a file of today's tokenizers");
  for (const char* key : {"truncation", "padding"}) {
    check_input(is_null(parts, key), origin, ": ", key,
                " is set; expected null, as mamba3 neither cuts nor fills texts; set it to null");
  }
  BpeModel model = build_model(file, origin);
  std::vector<AddedToken> added = read_added_tokens(part_or_null(parts, "added_tokens"),
                                                    model.tokens(), origin + ": added_tokens");
  const auto part = [&](const char* key) -> const json& { return part_or_null(parts, key); };
  TokenizerParts all{std::move(model),
                     std::move(added),
                     Normalizer::parse(part("normalizer"), origin + ": normalizer"),
                     PreTokenizer::parse(part("pre_tokenizer"), origin + ": pre_tokenizer"),
                     parse_post_processor(part("post_processor"), origin + ": post_processor"),
                     parse_decoder(part("decoder"), origin + ": decoder")};
  return std::make_shared<PipelineTokenizer>(std::move(all), origin);
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::filesystem::path& path) {
  const std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  const std::string_view text = text_of(file->bytes());
  const std::string_view content = without_blank_front(text);
  check_input(!content.empty(), path.string(),
              " is empty; expected a tokenizer.json or a rank file");
  if (content[0] == '{') return parse_json_text(text, path.string());
  check_input(text[0] != '\n' || text.find('\0') == std::string_view::npos, path.string(),
              " looks like a SentencePiece model; expected a byte-level tokenizer.json or a rank "
              "file of tiktoken");
  return parse_rank_text(text, path.string());
}

std::shared_ptr<const Tokenizer> Tokenizer::parse_json(const std::string& json_text,
                                                       const std::string& origin) {
  return parse_json_text(json_text, origin);
}

std::shared_ptr<const Tokenizer> Tokenizer::parse_ranks(const std::string& text,
                                                        const std::string& origin) {
  return parse_rank_text(text, origin);
}

}  // namespace mamba3
