// JSON from outside: bounded in size and depth before it is parsed.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mamba3 {

struct JsonLimits {
  std::int64_t bytes = std::int64_t{1} << 20;
  int depth = 32;
  std::int64_t values = std::int64_t{1} << 40;  // a parsed one takes 16 bytes or more
};

// Refuses what is too large, too deep or not JSON (RFC 8259, UTF-8); `origin` names the text in
// messages. Of equal keys in one object the last counts, as in Python.
nlohmann::json parse_json_limited(std::string_view text, const std::string& origin,
                                  const JsonLimits& limits = {});

// The two halves of the above, for readers that take JSON event by event.
void check_json_limits(std::string_view text, const std::string& origin, const JsonLimits& limits);
[[noreturn]] void refuse_json(const std::string& origin, std::string_view reason);

}  // namespace mamba3
