// What users ask to be scored, as they write it: JSON lines, lists of ids, lines of test sets.
// Everything here is hostile until checked; an error names the place.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mamba3/engine.h"
#include "mamba3/tokenizer.h"

namespace mamba3 {

// One JSON object with the fields that requests and test sets have; others are ignored.
struct RequestLine {
  std::string where;  // "requests.jsonl line 3"
  std::optional<std::string> text, context, continuation, query;
  std::optional<std::vector<std::string>> choices, context_options;
  std::optional<std::vector<std::int32_t>> ids;  // each in [0, 2^31)
  std::optional<std::int64_t> gold;
};
RequestLine parse_request_line(std::string_view json, const std::string& where);

// The next line of `text` that is not blank, which is taken off it with all before; `number` counts
// them. False: there is none.
bool next_line(std::string_view& text, std::int64_t& number, std::string_view& line);

// Every line of `text` that is not blank.
void for_each_request(std::string_view text, const std::string& origin,
                      const std::function<void(const RequestLine&)>& use);

// {"context", "continuation"}, {"text"} or {"ids"}, exactly one of the three. `tokenizer` may be
// null as long as only ids come.
ScoreRequest to_score_request(const RequestLine& line, const Tokenizer* tokenizer,
                              std::int64_t vocab);

// The ids of `continuation` after `context`: those by which the ids of both together are longer
// than the ids of the context alone. White space at the end of the context is moved to the
// continuation.
ScoreRequest encode_pair(const Tokenizer& tokenizer, std::string_view context,
                         std::string_view continuation, const std::string& where);

// A JSON list of ids, or a list of lists.
struct IdLists {
  bool nested = false;
  std::vector<std::vector<std::int32_t>> lists;
};
IdLists parse_ids_json(std::string_view json, const std::string& origin, std::int64_t vocab);

// "1,2,3"; blanks around an id are ignored, the empty text is the empty list.
std::vector<std::int32_t> parse_ids(std::string_view text, const std::string& origin,
                                    std::int64_t vocab);
void check_ids(const std::vector<std::int32_t>& ids, std::int64_t vocab, const std::string& origin);

}  // namespace mamba3
