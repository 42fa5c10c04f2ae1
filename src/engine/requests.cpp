#include "engine/requests.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/quote.h"
#include "engine/json_events.h"
#include "engine/json_fields.h"

namespace mamba3 {
namespace {

class IdListEvents : public JsonEvents {
 public:
  IdListEvents(IdLists& ids, const std::string& origin) : JsonEvents(origin), ids_(ids) {}

  bool number_integer(std::int64_t value) {
    if (depth_ == 0 || value < 0 || value > kMostId) return other();
    if (depth_ == 1) {
      if (ids_.nested) other();
      if (ids_.lists.empty()) ids_.lists.emplace_back();
    }
    ids_.lists.back().push_back(static_cast<std::int32_t>(value));
    return true;
  }
  bool number_unsigned(std::uint64_t value) {
    return number_integer(static_cast<std::int64_t>(std::min<std::uint64_t>(value, INT64_MAX)));
  }
  bool string(std::string&) { return other(); }
  bool start_object(std::size_t) { return other(); }
  bool end_object() { return other(); }
  bool key(std::string&) { return other(); }
  bool start_array(std::size_t) {
    if (depth_ == 2) other();
    if (depth_ == 1) {
      if (!ids_.nested && !ids_.lists.empty()) other();
      ids_.nested = true;
      ids_.lists.emplace_back();
    }
    ++depth_;
    return true;
  }
  bool end_array() {
    --depth_;
    if (depth_ == 0 && ids_.lists.empty()) ids_.lists.emplace_back();
    return true;
  }

 protected:
  bool other() override {
    refuse("holds something else than ids",
           str("a list of whole numbers from 0 to ", kMostId, ", or a list of such lists"));
  }

 private:
  IdLists& ids_;
  int depth_ = 0;
};

// Bytes of the white space character that `text` ends with, as Unicode and Python's str.rstrip see
// it; 0: none.
std::size_t trailing_space_bytes(std::string_view text) {
  if (text.empty()) return 0;
  const auto last = static_cast<unsigned char>(text.back());
  if ((last >= 0x09 && last <= 0x0d) || (last >= 0x1c && last <= 0x20)) return 1;
  for (const char* space : {"\xc2\x85", "\xc2\xa0", "\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9",
                            "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"}) {
    if (text.ends_with(space)) return std::string_view(space).size();
  }
  // U+2000 to U+200A
  return text.size() >= 3 && text.substr(text.size() - 3).starts_with("\xe2\x80") && last >= 0x80 &&
                 last <= 0x8a
             ? 3
             : 0;
}

// Something must stand before the first token that is predicted.
std::vector<std::int32_t> encode_prefix(const Tokenizer& tokenizer, std::string_view text,
                                        const std::string& where) {
  std::vector<std::int32_t> ids = tokenizer.encode(text, true);
  if (!ids.empty()) return ids;
  const auto end_of_text = tokenizer.end_of_text();
  check_input(end_of_text.has_value(), where,
              " has an empty context, and the tokenizer adds nothing in front of a text; expected "
              "at least one token before the continuation; give a context");
  return {*end_of_text};
}

}  // namespace

RequestLine parse_request_line(std::string_view text, const std::string& where) {
  RequestLine line;
  line.where = where;
  const JsonField fields[] = {{"text", &line.text},
                              {"context", &line.context},
                              {"continuation", &line.continuation},
                              {"query", &line.query},
                              {"choices", &line.choices},
                              {"context_options", &line.context_options},
                              {"ids", &line.ids},
                              {"gold", &line.gold}};
  read_json_fields(text, where, "{\"text\": ...} or the like", fields);
  return line;
}

bool next_line(std::string_view& text, std::int64_t& number, std::string_view& line) {
  while (!text.empty()) {
    ++number;
    const std::size_t end = std::min(text.find('\n'), text.size());
    line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) return true;
  }
  return false;
}

void for_each_request(std::string_view text, const std::string& origin,
                      const std::function<void(const RequestLine&)>& use) {
  std::int64_t number = 0;
  std::string_view line;
  while (next_line(text, number, line)) {
    use(parse_request_line(line, str(origin, " line ", number)));
  }
}

ScoreRequest encode_pair(const Tokenizer& tokenizer, std::string_view context,
                         std::string_view continuation, const std::string& where) {
  const std::string whole = std::string(context) + std::string(continuation);
  while (const std::size_t bytes = trailing_space_bytes(context)) context.remove_suffix(bytes);
  ScoreRequest request;
  request.ids = encode_prefix(tokenizer, context, where);
  request.first_scored = static_cast<std::int64_t>(request.ids.size());
  std::vector<std::int32_t> both = tokenizer.encode(whole, true);
  // Without a BOS an empty context has no ids in `both` either.
  const std::vector<std::int32_t> before = tokenizer.encode(context, true);
  std::size_t skip = before.size();
  if (both.size() <= skip && both != before) {
    // The continuation is part of tokens that begin in the context: they are scored as a whole.
    skip = std::ranges::mismatch(both, before).in1 - both.begin();
    request.ids.resize(request.ids.size() - (before.size() - skip));
    request.first_scored = std::max<std::int64_t>(1, std::ssize(request.ids));
  }
  if (both.size() > skip) {
    request.ids.insert(request.ids.end(), both.begin() + static_cast<std::ptrdiff_t>(skip),
                       both.end());
  }
  return request;
}

ScoreRequest to_score_request(const RequestLine& line, const Tokenizer* tokenizer,
                              std::int64_t vocab) {
  const bool pair = line.context.has_value() || line.continuation.has_value();
  check_input(int{pair} + int{line.text.has_value()} + int{line.ids.has_value()} == 1 &&
                  line.context.has_value() == line.continuation.has_value(),
              line.where,
              " does not say what to score; expected exactly one of {\"context\", "
              "\"continuation\"}, {\"text\"} and {\"ids\"}; correct the line");
  ScoreRequest request;
  if (line.ids) {
    request.ids = *line.ids;
    check_ids(request.ids, vocab, line.where);
    return request;
  }
  check_input(tokenizer != nullptr, line.where,
              " holds text, but the model's folder has no tokenizer.json; expected one, or ids; "
              "name one with --tokenizer");
  try {
    if (pair) {
      request = encode_pair(*tokenizer, *line.context, *line.continuation, line.where);
    } else {
      request.ids = tokenizer->encode(*line.text, true);
    }
  } catch (const Error& error) {
    fail(error.code(), line.where, ": ", error.what());
  }
  check_ids(request.ids, vocab, line.where);
  return request;
}

IdLists parse_ids_json(std::string_view text, const std::string& origin, std::int64_t vocab) {
  IdLists ids;
  IdListEvents events(ids, origin);
  nlohmann::json::sax_parse(text.begin(), text.end(), &events);
  for (const auto& list : ids.lists) check_ids(list, vocab, origin);
  return ids;
}

std::vector<std::int32_t> parse_ids(std::string_view text, const std::string& origin,
                                    std::int64_t vocab) {
  std::vector<std::int32_t> ids;
  const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  bool more = std::any_of(text.begin(), text.end(), [&](char c) { return !is_blank(c); });
  while (more) {
    const std::size_t comma = text.find(',');
    std::string_view part = text.substr(0, comma);
    more = comma != std::string_view::npos;
    if (more) text.remove_prefix(comma + 1);
    while (!part.empty() && is_blank(part.front())) part.remove_prefix(1);
    while (!part.empty() && is_blank(part.back())) part.remove_suffix(1);
    std::int32_t id = -1;
    const char* end = part.data() + part.size();
    const auto parsed = std::from_chars(part.data(), end, id);
    check_input(parsed.ec == std::errc{} && parsed.ptr == end && id >= 0, origin, " has ",
                quote(part), " as id ", ids.size(),
                "; expected whole numbers separated by commas; correct it");
    ids.push_back(id);
  }
  check_ids(ids, vocab, origin);
  return ids;
}

void check_ids(const std::vector<std::int32_t>& ids, std::int64_t vocab,
               const std::string& origin) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    check_input(ids[i] >= 0 && ids[i] < vocab, origin, " has id ", ids[i], " at position ", i,
                "; expected ids from 0 to ", vocab - 1, "; use ids of this model's own vocabulary");
  }
}

}  // namespace mamba3
