#include "io/tokenizer_ranks.h"

#include <charconv>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_pipeline.h"

namespace mamba3 {

namespace {

constexpr std::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::int32_t kSpecialTokens = 256;
constexpr std::size_t kMostBytes = std::size_t{64} << 20;
constexpr std::size_t kLeastLineBytes = 7;  // "AA== 0\n"

std::optional<std::uint32_t> base64_value(char c) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::size_t value = kDigits.find(c);
  if (value == std::string_view::npos) return std::nullopt;
  return static_cast<std::uint32_t>(value);
}

std::optional<std::string> decode_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  for (int i = 0; i < 2 && text.ends_with('='); ++i) text.remove_suffix(1);
  if (text.size() % 4 == 1) return std::nullopt;
  std::string out;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const std::optional<std::uint32_t> value = base64_value(c);
    if (!value) return std::nullopt;
    bits = bits << 6 | *value;
    count += 6;
    if (count >= 8) {
      count -= 8;
      out += static_cast<char>(bits >> count & 0xFF);
    }
  }
  if ((bits & ((1U << count) - 1)) != 0) return std::nullopt;  // left-over bits
  return out;
}

void add_line(std::string_view line, TokenTable& tokens, const std::string& origin) {
  const std::size_t blank = line.find(' ');
  std::optional<std::string> bytes;
  std::int32_t rank = -1;
  if (blank != std::string_view::npos) {
    bytes = decode_base64(line.substr(0, blank));
    const char* end = line.data() + line.size();
    const auto [stop, error] = std::from_chars(line.data() + blank + 1, end, rank);
    if (error != std::errc() || stop != end) rank = -1;
  }
  check_input(bytes && !bytes->empty() && rank >= 0, origin, " has the line ", quote(line),
              "; expected lines of a base64 token, a blank and a rank; give a tokenizer.json or a "
              "rank file of tiktoken");
  check_input(tokens.add(*bytes, false, rank), origin, " has the token of ", quote(line),
              " twice; expected it once");
}

TokenTable read_ranks(std::string_view text, const std::string& origin) {
  check_input(text.size() <= kMostBytes, origin, " has ", text.size(),
              " bytes; expected a rank file of at most ", kMostBytes);
  TokenTable tokens;
  tokens.reserve(text.size() / (2 * kLeastLineBytes), text.size() / 2);
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) add_line(line, tokens, origin);
  }
  check_input(tokens.size() > 0 && tokens.largest_id() == tokens.size() - 1, origin, " has ",
              tokens.size(), " tokens and the rank ", tokens.largest_id(),
              "; expected the ranks from 0 on without a gap");
  const std::optional<std::int32_t> twice = tokens.index_ids();
  check_input(!twice, origin, " has the rank ", twice.value_or(0), " twice; expected it once");
  return tokens;
}

// Llama 3's names, in its order.
std::vector<AddedToken> special_tokens(std::int32_t first_id) {
  std::vector<AddedToken> out;
  int reserved = 0;
  for (std::int32_t i = 0; i < kSpecialTokens; ++i) {
    AddedToken token;
    token.id = first_id + i;
    token.special = true;
    switch (i) {
      case 0:
        token.content = "<|begin_of_text|>";
        break;
      case 1:
        token.content = "<|end_of_text|>";
        break;
      case 6:
        token.content = "<|start_header_id|>";
        break;
      case 7:
        token.content = "<|end_header_id|>";
        break;
      case 9:
        token.content = "<|eot_id|>";
        break;
      default:
        token.content = "<|reserved_special_token_" + std::to_string(reserved++) + "|>";
    }
    out.push_back(std::move(token));
  }
  return out;
}

}  // namespace

std::shared_ptr<const Tokenizer> parse_rank_text(std::string_view text, const std::string& origin) {
  BpeModel model(read_ranks(text, origin), std::nullopt, true);
  check_input(model.has_every_byte(), origin,
              " lacks single bytes; expected a token for each of the 256");
  const std::int32_t first_special = model.tokens().largest_id() + 1;
  TokenizerParts parts{std::move(model),
                       special_tokens(first_special),
                       nullptr,
                       PreTokenizer(Regex::from_oniguruma(kLlama3Regex, "Llama 3's regex")),
                       {{first_special}, {}},
                       Decoding::kBytes};
  return std::make_shared<PipelineTokenizer>(std::move(parts), origin);
}

}  // namespace mamba3
