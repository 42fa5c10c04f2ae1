// Any text through a byte-level tokenizer comes back the same; any bytes through Utf8Stream come
// out as UTF-8, however they are cut.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mamba3/error.h"
#include "mamba3/tokenizer.h"

namespace {

// A rank file of all bytes and a few longer tokens, in the order of their ranks.
std::string rank_file() {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* token : {"th", "the", " the", "  ", "    ", "\n\n", "aa", "aaaa", "'s", "12",
                            "123", "\xC3\xA9", "\xE4\xB8\xAD", " \n"}) {
    tokens.emplace_back(token);
  }
  std::string out;
  for (std::size_t rank = 0; rank < tokens.size(); ++rank) {
    std::uint32_t bits = 0;
    int count = 0;
    std::string line;
    for (const char c : tokens[rank]) {
      bits = bits << 8 | static_cast<unsigned char>(c);
      for (count += 8; count >= 6; count -= 6) line += kDigits[bits >> (count - 6) & 63];
    }
    if (count > 0) line += kDigits[bits << (6 - count) & 63];
    while (line.size() % 4 != 0) line += '=';
    out += line + ' ' + std::to_string(rank) + '\n';
  }
  return out;
}

std::string through_stream(std::string_view bytes, std::size_t cut) {
  mamba3::Utf8Stream stream;
  std::string out = stream.push(bytes.substr(0, cut));
  out += stream.push(bytes.substr(cut));
  return out + stream.finish();
}

void require(bool ok) {
  if (!ok) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::shared_ptr<const mamba3::Tokenizer> tokenizer =
      mamba3::Tokenizer::parse_ranks(rank_file(), "ranks");
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::size_t cut = text.empty() ? 0 : data[0] % text.size();

  const std::string repaired = through_stream(text, cut);
  require(repaired == through_stream(text, 0));
  require(through_stream(repaired, cut) == repaired);

  const std::vector<std::int32_t> ids = tokenizer->encode(repaired, false);
  require(tokenizer->decode(ids, false) == repaired);
  std::string bytes;
  for (const std::int32_t id : ids) bytes += tokenizer->token_bytes(id, false);
  require(bytes == repaired);
  try {
    require(tokenizer->decode(tokenizer->encode(text, true), true).size() <= text.size());
    require(repaired == text);
  } catch (const mamba3::Error&) {
    require(repaired != text);  // only ill-formed text is refused
  }
  return 0;
}
