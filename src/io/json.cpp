#include "io/json.h"

#include <algorithm>

#include "core/check.h"
#include "core/quote.h"

namespace mamba3 {

void refuse_json(const std::string& origin, std::string_view reason) {
  // The library's messages begin with its own class names in brackets.
  if (const std::size_t end = reason.find("] "); end != std::string_view::npos) {
    reason.remove_prefix(end + 2);
  }
  // They also repeat the text around the fault, which may be anything.
  const std::string shown = quote(reason);
  fail(ErrorCode::kBadInput, origin, " is not valid JSON: ", shown,
       "; expected a JSON document in UTF-8; correct the file or fetch it again");
}

void check_json_limits(std::string_view text, const std::string& origin, const JsonLimits& limits) {
  check_input(static_cast<std::int64_t>(text.size()) <= limits.bytes, origin, " has ", text.size(),
              " bytes; expected at most ", limits.bytes, "; this is not such a file");
  int depth = 0;
  std::int64_t commas = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      check_input(++depth <= limits.depth, origin, " nests deeper than ", limits.depth,
                  " levels; expected a flatter document; this is not such a file");
    } else if (c == '}' || c == ']') {
      depth = std::max(depth - 1, 0);
    } else if (c == ',') {
      check_input(++commas < limits.values, origin, " holds more than ", limits.values,
                  " values; expected fewer; this is not such a file");
    }
  }
}

nlohmann::json parse_json_limited(std::string_view text, const std::string& origin,
                                  const JsonLimits& limits) {
  check_json_limits(text, origin, limits);
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    refuse_json(origin, error.what());
  }
}

}  // namespace mamba3
