// What a tokenizer.json says, read event by event: its two long lists go straight into tables.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer_bpe.h"

namespace mamba3 {

struct TokenizerFile {
  nlohmann::json parts;  // an object: all but model.vocab and model.merges
  TokenTable tokens;     // model.vocab, ids not yet indexed
  MergeTable merges;     // model.merges
};

// Refuses what is no JSON object with a byte-pair model, and lists that contradict themselves.
TokenizerFile read_tokenizer_file(std::string_view json_text, const std::string& origin);

// Members of such an object. A missing one and one of another type is refused with its path:
// `where` is the path of the object, "tokenizer.json: pre_tokenizer".
const nlohmann::json& json_member(const nlohmann::json& object, const char* key,
                                  const std::string& where);
std::string json_string(const nlohmann::json& object, const char* key, const std::string& where);
bool json_bool(const nlohmann::json& object, const char* key, const std::string& where);
bool json_bool_or(const nlohmann::json& object, const char* key, bool otherwise,
                  const std::string& where);
const nlohmann::json& json_list(const nlohmann::json& object, const char* key,
                                const std::string& where);
std::int32_t json_token_id(const nlohmann::json& value, const std::string& where);
// Missing counts as null.
bool is_null(const nlohmann::json& object, const char* key);

}  // namespace mamba3
