// A tokenizer file of any contents: refused with an Error, or a tokenizer whose ids are its own.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "mamba3/error.h"
#include "mamba3/tokenizer.h"

namespace {

constexpr const char* kText = "It's 12 abc  ab\n\xC3\xA9\xE4\xB8\xAD <|endoftext|> \xCC\x81 AB";

void use(const mamba3::Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  try {
    ids = tokenizer.encode(kText, true);
  } catch (const mamba3::Error&) {
    return;  // a regex that takes too long
  }
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= tokenizer.vocab()) std::abort();
  }
  tokenizer.decode(ids, true);
  tokenizer.token_id(kText);
  tokenizer.end_of_text();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    use(*mamba3::Tokenizer::parse_json(text, "input"));
  } catch (const mamba3::Error&) {
  }
  try {
    use(*mamba3::Tokenizer::parse_ranks(text, "input"));
  } catch (const mamba3::Error&) {
  }
  return 0;
}
