// What stands around a text's ids, and how ids become text again.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace mamba3 {

// Ids before and after those of the text.
struct Surroundings {
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> after;
};
// The "post_processor" of a tokenizer.json. Refuses kinds that it does not know, and templates that
// do not hold the text once.
Surroundings parse_post_processor(const nlohmann::json& spec, const std::string& where);

// How the tokens of a decoded text are put together.
enum class Decoding {
  kBytes,         // ByteLevel: letters stand for bytes
  kJoined,        // Fuse: tokens as they are written
  kBlankBetween,  // no decoder: tokens as they are written, a blank between two
};
Decoding parse_decoder(const nlohmann::json& spec, const std::string& where);

}  // namespace mamba3
