// Requests to generate, as users write them: one JSON object a line. Hostile until checked; an
// error names the place.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mamba3/engine.h"
#include "mamba3/tokenizer.h"

namespace mamba3 {

// What a line may say; other fields are ignored.
struct GenerateLine {
  std::string where;                                    // "requests.jsonl line 3"
  std::optional<std::string> prompt;                    // or ...
  std::optional<std::vector<std::int32_t>> prompt_ids;  // ... these, each in [0, 2^31)
  std::optional<std::int64_t> max_tokens, top_k;
  std::optional<double> temperature, top_p, min_p;
  std::optional<double> repeat_penalty, presence_penalty, frequency_penalty;
  std::optional<std::uint64_t> seed;
  std::optional<std::vector<std::string>> stop;  // written as a list, or as one text
  std::optional<bool> ignore_eos;
};
GenerateLine parse_generate_line(std::string_view json, const std::string& where);

// `defaults` gives what the line does not say. `tokenizer` may be null when the line brings ids.
GenerateRequest to_generate_request(const GenerateLine& line, const GenerateRequest& defaults,
                                    const Tokenizer* tokenizer, std::int64_t vocab);

}  // namespace mamba3
