// tiktoken's rank files, as Llama 3 ships one (tokenizer.model): a line "base64 rank" a token.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "mamba3/tokenizer.h"

namespace mamba3 {

// With Llama 3's regex and its 256 special tokens behind the ranks; special tokens written in a
// text count, and add_special puts <|begin_of_text|> in front.
std::shared_ptr<const Tokenizer> parse_rank_text(std::string_view text, const std::string& origin);

}  // namespace mamba3
