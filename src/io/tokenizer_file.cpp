#include "io/tokenizer_file.h"

#include <limits>
#include <optional>
#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "io/json.h"
#include "io/tokenizer_letters.h"

namespace mamba3 {

namespace {

using nlohmann::json;

constexpr JsonLimits kLimits{std::int64_t{64} << 20, 32};
constexpr std::int64_t kMostValues = 1'000'000;  // outside of the two lists
constexpr std::int32_t kMostId = std::numeric_limits<std::int32_t>::max() - 1;

// Left and right part, one behind the other.
struct MergePair {
  std::uint32_t begin;
  std::uint32_t left_bytes;
  std::uint32_t right_bytes : 31;
  std::uint32_t is_literal : 1;  // letters, as at least one of the two is no byte sequence
};

struct Lists {
  TokenTable tokens;
  bool has_vocab = false;
  std::string merge_pool;
  std::vector<MergePair> merges;
  bool has_merges = false;
};

// Builds a json value of all but model.vocab and model.merges.
class Reader : public nlohmann::json_sax<json> {
 public:
  Reader(const std::string& origin, Lists& lists) : origin_(origin), lists_(lists) {}

  json root;

  bool null() override { return value(nullptr); }
  bool boolean(bool v) override { return value(v); }
  bool number_integer(number_integer_t v) override { return v < 0 ? value(v) : number(v); }
  bool number_unsigned(number_unsigned_t v) override { return number(v); }
  bool number_float(number_float_t v, const string_t& /*text*/) override { return value(v); }
  bool string(string_t& v) override;
  bool binary(binary_t& /*v*/) override { return false; }
  bool start_object(std::size_t /*elements*/) override;
  bool key(string_t& name) override {
    key_ = name;
    return true;
  }
  bool end_object() override { return end(); }
  bool start_array(std::size_t /*elements*/) override;
  bool end_array() override;
  bool parse_error(std::size_t /*at*/, const std::string& /*token*/,
                   const nlohmann::json::exception& error) override {
    refuse_json(origin_, error.what());
  }

 private:
  enum class Place { kDocument, kVocab, kMerges, kPair };

  [[noreturn]] void refuse(const char* found, const char* expected) const {
    fail(ErrorCode::kBadInput, origin_, ": ", found, "; expected ", expected);
  }
  bool in_model() const { return stack_.size() == 2 && model_ == stack_.back(); }
  bool open(json container);
  bool end();
  json& place(json v);
  bool value(json v);
  template <class Integer>
  bool number(Integer v);
  void add_merge(std::string_view left, std::string_view right);
  void add_merge_line(std::string_view line);

  const std::string& origin_;
  Lists& lists_;
  Place where_ = Place::kDocument;
  std::vector<json*> stack_;  // open objects and arrays
  const json* model_ = nullptr;
  std::string key_;
  std::int64_t values_ = 0;
  std::vector<std::string> pair_;
  bool has_lines_ = false;
};

json& Reader::place(json v) {
  if (++values_ > kMostValues)
    refuse("more than a million values outside of the vocabulary",
           "the few that describe a tokenizer");
  if (stack_.empty()) return root = std::move(v);
  json& parent = *stack_.back();
  if (parent.is_array()) return parent.emplace_back(std::move(v));
  return parent[key_] = std::move(v);
}

bool Reader::value(json v) {
  if (where_ == Place::kVocab) {
    fail(ErrorCode::kBadInput, origin_, ": model.vocab gives ", quote(key_),
         " something that is no id; expected a whole number from 0 to ", kMostId);
  }
  if (where_ != Place::kDocument) {
    refuse("model.merges has an entry of another type", "\"left right\" or [\"left\", \"right\"]");
  }
  place(std::move(v));
  return true;
}

template <class Integer>
bool Reader::number(Integer v) {
  if (where_ != Place::kVocab) return value(v);
  check_input(static_cast<std::uint64_t>(v) <= static_cast<std::uint64_t>(kMostId), origin_,
              ": model.vocab gives ", quote(key_), " the id ", v, "; expected at most ", kMostId);
  const std::optional<std::string> bytes = bytes_of_letters(key_);
  const bool added = lists_.tokens.add(bytes ? *bytes : key_, !bytes, static_cast<std::int32_t>(v));
  check_input(added, origin_, ": model.vocab has ", quote(key_), " twice; expected it once");
  return true;
}

bool Reader::string(string_t& v) {
  if (where_ == Place::kMerges) {
    has_lines_ = true;
    add_merge_line(v);
  } else if (where_ == Place::kPair) {
    pair_.push_back(v);
    if (pair_.size() > 2) refuse("model.merges has an entry of more than two", "two tokens");
  } else {
    return value(std::move(v));
  }
  return true;
}

bool Reader::open(json container) {
  const bool is_model = stack_.size() == 1 && stack_.back()->is_object() && key_ == "model";
  json& opened = place(std::move(container));
  stack_.push_back(&opened);
  if (is_model) model_ = &opened;
  return true;
}

bool Reader::start_object(std::size_t /*elements*/) {
  if (where_ != Place::kDocument) return value(json::object());
  if (in_model() && key_ == "vocab") {
    if (lists_.has_vocab) refuse("a second model.vocab", "one");
    lists_.has_vocab = true;
    where_ = Place::kVocab;
    return true;
  }
  return open(json::object());
}

bool Reader::start_array(std::size_t /*elements*/) {
  if (where_ == Place::kMerges) {
    where_ = Place::kPair;
    pair_.clear();
    return true;
  }
  if (where_ != Place::kDocument) return value(json::array());
  if (in_model() && key_ == "merges") {
    if (lists_.has_merges) refuse("a second model.merges", "one");
    lists_.has_merges = true;
    where_ = Place::kMerges;
    return true;
  }
  return open(json::array());
}

bool Reader::end() {
  if (where_ == Place::kVocab) {
    where_ = Place::kDocument;
  } else {
    stack_.pop_back();
  }
  return true;
}

bool Reader::end_array() {
  if (where_ == Place::kPair) {
    if (pair_.size() != 2) refuse("model.merges has an entry of less than two", "two tokens");
    if (has_lines_) refuse("model.merges has entries of two kinds", "strings or pairs");
    add_merge(pair_[0], pair_[1]);
    where_ = Place::kMerges;
    return true;
  }
  if (where_ != Place::kMerges) return end();
  where_ = Place::kDocument;
  return true;
}

void Reader::add_merge_line(std::string_view line) {
  if (line.starts_with("#version")) return;
  const std::size_t blank = line.find(' ');
  check_input(
      blank != std::string_view::npos && line.find(' ', blank + 1) == std::string_view::npos,
      origin_, ": model.merges has ", quote(line), "; expected two tokens and one blank");
  if (!pair_.empty()) refuse("model.merges has entries of two kinds", "strings or pairs");
  add_merge(line.substr(0, blank), line.substr(blank + 1));
}

void Reader::add_merge(std::string_view left, std::string_view right) {
  const std::optional<std::string> left_bytes = bytes_of_letters(left);
  const std::optional<std::string> right_bytes = bytes_of_letters(right);
  const bool is_literal = !left_bytes || !right_bytes;
  const std::string_view first = is_literal ? left : *left_bytes;
  const std::string_view second = is_literal ? right : *right_bytes;
  lists_.merges.push_back({static_cast<std::uint32_t>(lists_.merge_pool.size()),
                           static_cast<std::uint32_t>(first.size()),
                           static_cast<std::uint32_t>(second.size()) & 0x7FFFFFFF,
                           is_literal ? 1U : 0U});
  lists_.merge_pool += first;
  lists_.merge_pool += second;
}

std::int32_t find_part(const TokenTable& tokens, std::string_view text, bool is_letters,
                       const std::string& origin) {
  std::optional<std::int32_t> id;
  if (!is_letters) {
    id = tokens.find(text, false);
  } else {
    const std::optional<std::string> bytes = bytes_of_letters(text);
    id = bytes ? tokens.find(*bytes, false) : tokens.find(text, true);
  }
  check_input(id.has_value(), origin, ": model.merges names or makes the token ", quote(text),
              ", which model.vocab lacks; expected only tokens of the vocabulary");
  return *id;
}

MergeTable build_merges(const Lists& lists, const std::string& origin) {
  MergeTable merges(lists.merges.size());
  const std::string_view pool = lists.merge_pool;
  std::uint32_t rank = 0;
  for (const MergePair& pair : lists.merges) {
    const std::string_view both = pool.substr(pair.begin, pair.left_bytes + pair.right_bytes);
    const auto find = [&](std::string_view text) {
      return find_part(lists.tokens, text, pair.is_literal != 0, origin);
    };
    const std::int32_t left = find(both.substr(0, pair.left_bytes));
    const std::int32_t right = find(both.substr(pair.left_bytes));
    merges.set(left, right, {rank++, find(both)});
  }
  return merges;
}

}  // namespace

TokenizerFile read_tokenizer_file(std::string_view json_text, const std::string& origin) {
  check_json_limits(json_text, origin, kLimits);
  Lists lists;
  Reader reader(origin, lists);
  json::sax_parse(json_text.begin(), json_text.end(), &reader);
  check_input(reader.root.is_object() && reader.root.contains("model"), origin,
              " is JSON without a model; expected a tokenizer.json of Hugging Face's tokenizers");
  const json& model = json_member(reader.root, "model", origin);
  // Old files have no type; their lists tell.
  const std::string type =
      is_null(model, "type") ? "BPE" : json_string(model, "type", origin + ": model");
  check_input(type == "BPE", origin, ": model.type is ", quote(type),
              "; expected BPE, the only kind of tokenizer that mamba3 reads");
  check_input(lists.has_vocab && lists.has_merges, origin, ": the model lacks ",
              lists.has_vocab ? "merges" : "vocab", "; expected model.vocab and model.merges");
  check_input(lists.tokens.size() > 0, origin, ": model.vocab is empty; expected tokens");
  MergeTable merges = build_merges(lists, origin);
  return {std::move(reader.root), std::move(lists.tokens), std::move(merges)};
}

const json& json_member(const json& object, const char* key, const std::string& where) {
  check_input(object.is_object(), where, " is ", object.type_name(), "; expected an object");
  const auto found = object.find(key);
  check_input(found != object.end(), where, " has no ", key, "; expected one");
  return *found;
}

std::string json_string(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key, where);
  check_input(value.is_string(), where, ".", key, " is ", value.type_name(), "; expected a string");
  return value.get<std::string>();
}

bool json_bool(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key, where);
  check_input(value.is_boolean(), where, ".", key, " is ", value.type_name(),
              "; expected true or false");
  return value.get<bool>();
}

bool json_bool_or(const json& object, const char* key, bool otherwise, const std::string& where) {
  return is_null(object, key) ? otherwise : json_bool(object, key, where);
}

const json& json_list(const json& object, const char* key, const std::string& where) {
  const json& value = json_member(object, key, where);
  check_input(value.is_array(), where, ".", key, " is ", value.type_name(), "; expected a list");
  return value;
}

std::int32_t json_token_id(const json& value, const std::string& where) {
  check_input(value.is_number_unsigned() &&
                  value.get<std::uint64_t>() <= static_cast<std::uint64_t>(kMostId),
              where, " is ", quote(value.dump()), "; expected a whole number from 0 to ", kMostId);
  return value.get<std::int32_t>();
}

bool is_null(const json& object, const char* key) {
  return !object.is_object() || !object.contains(key) || object.at(key).is_null();
}

}  // namespace mamba3
