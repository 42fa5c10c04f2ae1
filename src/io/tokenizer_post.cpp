#include "io/tokenizer_post.h"

#include <string_view>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_file.h"

namespace mamba3 {

namespace {

using nlohmann::json;

std::vector<std::int32_t> special_ids(const json& spec, const std::string& name,
                                      const std::string& where) {
  const json& all = json_member(spec, "special_tokens", where);
  const std::string here = where + ".special_tokens";
  std::vector<std::int32_t> ids;
  for (const json& id : json_list(json_member(all, name.c_str(), here), "ids", here)) {
    ids.push_back(json_token_id(id, here));
  }
  return ids;
}

// "single", the template for one text: pieces {"SpecialToken": {"id": name}} and one
// {"Sequence": {"id": "A"}}.
Surroundings parse_template(const json& spec, const std::string& where) {
  Surroundings out;
  int texts = 0;
  for (const json& piece : json_list(spec, "single", where)) {
    const std::string here = where + ".single";
    check_input(piece.is_object() && piece.size() == 1, here,
                " holds something else than a piece; expected Sequence or SpecialToken");
    if (piece.contains("Sequence")) {
      const std::string id = json_string(piece.at("Sequence"), "id", here);
      check_input(id == "A", here, " names the sequence ", quote(id), "; expected A");
      ++texts;
      continue;
    }
    const json& token = json_member(piece, "SpecialToken", here);
    const std::vector<std::int32_t> ids = special_ids(spec, json_string(token, "id", here), where);
    std::vector<std::int32_t>& side = texts == 0 ? out.before : out.after;
    side.insert(side.end(), ids.begin(), ids.end());
  }
  check_input(texts == 1, where, ".single holds the text ", texts,
              " times; expected once; other templates are not supported");
  return out;
}

// "sep" and "cls" of BertProcessing and RobertaProcessing: ["<s>", 0].
std::int32_t named_id(const json& spec, const char* key, const std::string& where) {
  const json& pair = json_list(spec, key, where);
  check_input(pair.size() == 2, where, ".", key, " has ", pair.size(),
              " elements; expected a token and its id");
  return json_token_id(pair[1], where + "." + key);
}

// Adds no ids; it moves offsets, which nothing here keeps.
bool only_moves_offsets(const std::string& type) {
  return type == "ByteLevel";
}

}  // namespace

Surroundings parse_post_processor(const json& spec, const std::string& where) {
  if (spec.is_null()) return {};
  const std::string type = json_string(spec, "type", where);
  if (only_moves_offsets(type)) return {};
  if (type == "TemplateProcessing") return parse_template(spec, where);
  if (type == "RobertaProcessing" || type == "BertProcessing") {
    return {{named_id(spec, "cls", where)}, {named_id(spec, "sep", where)}};
  }
  check_input(type == "Sequence", where, ".type is ", quote(type),
              "; expected null, ByteLevel, TemplateProcessing, RobertaProcessing, BertProcessing "
              "or Sequence; other post-processors are not supported");
  Surroundings out;
  int adding = 0;
  for (const json& part : json_list(spec, "processors", where)) {
    const std::string here = where + ".processors";
    if (only_moves_offsets(json_string(part, "type", here))) continue;
    out = parse_post_processor(part, here);
    check_input(++adding == 1, here, " has two that add tokens; expected one at most");
  }
  return out;
}

Decoding parse_decoder(const json& spec, const std::string& where) {
  if (spec.is_null()) return Decoding::kBlankBetween;
  const std::string type = json_string(spec, "type", where);
  if (type == "ByteLevel") return Decoding::kBytes;
  if (type == "Fuse") return Decoding::kJoined;
  check_input(type == "Sequence", where, ".type is ", quote(type),
              "; expected null, ByteLevel, Fuse or Sequence; other decoders are not supported");
  bool has_bytes = false;
  bool has_fuse = false;
  for (const json& part : json_list(spec, "decoders", where)) {
    const std::string here = where + ".decoders";
    const Decoding step = parse_decoder(part, here);
    check_input(step != Decoding::kBlankBetween, here, " holds null; expected a decoder");
    // Whatever follows ByteLevel or Fuse gets the whole text as one token.
    check_input(step != Decoding::kBytes || (!has_bytes && !has_fuse), here,
                " has ByteLevel behind another decoder; expected it first");
    has_bytes |= step == Decoding::kBytes;
    has_fuse |= step == Decoding::kJoined;
  }
  return has_bytes ? Decoding::kBytes : Decoding::kJoined;
}

}  // namespace mamba3
