#include "io/tokenizer_split.h"

#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "io/tokenizer_charset.h"
#include "io/tokenizer_file.h"
#include "io/tokenizer_unicode.h"

namespace mamba3 {

namespace {

using nlohmann::json;

// ByteLevel's own regex, GPT-2's.
constexpr std::string_view kByteLevelRegex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

SplitBehavior parse_behavior(const json& spec, const std::string& where) {
  const std::string name = json_string(spec, "behavior", where);
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  check_input(name == "Contiguous", where, ".behavior is ", quote(name),
              "; expected Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous");
  return SplitBehavior::kContiguous;
}

constexpr std::size_t kMostSteps = 64;

// Joins and drops pieces as they come from left to right, covering the text. At most one piece
// waits for what follows it.
template <class Emit>
class PieceJoiner {
 public:
  PieceJoiner(SplitBehavior behavior, Emit emit) : behavior_(behavior), emit_(std::move(emit)) {}

  void add(std::size_t begin, std::size_t end, bool is_match) {
    if (behavior_ == SplitBehavior::kRemoved) {
      if (!is_match) emit_(begin, end);
      return;
    }
    if (waiting_ && joins(is_match)) {
      end_ = end;
    } else {
      finish();
      begin_ = begin;
      end_ = end;
      waiting_ = true;
    }
    last_is_match_ = is_match;
  }

  void finish() {
    if (waiting_) emit_(begin_, end_);
    waiting_ = false;
  }

 private:
  // Whether the next piece belongs to the waiting one.
  bool joins(bool is_match) const {
    switch (behavior_) {
      case SplitBehavior::kMergedWithPrevious:
        return is_match && !last_is_match_;
      case SplitBehavior::kMergedWithNext:
        return !is_match && last_is_match_;
      case SplitBehavior::kContiguous:
        return is_match == last_is_match_;
      default:
        return false;
    }
  }

  SplitBehavior behavior_;
  Emit emit_;
  bool waiting_ = false;
  bool last_is_match_ = false;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

template <class Emit>
void split_once(const SplitStep& step, std::string_view text, RegexDeadline& deadline, Emit emit) {
  PieceJoiner<Emit> pieces(step.behavior, std::move(emit));
  std::size_t done = 0;
  for (RegexMatches match(step.regex, text, deadline); match.next();) {
    if (match.begin() != done) pieces.add(done, match.begin(), step.inverted);
    pieces.add(match.begin(), match.end(), !step.inverted);
    done = match.end();
  }
  if (done != text.size()) pieces.add(done, text.size(), step.inverted);
  pieces.finish();
}

}  // namespace

Regex parse_split_pattern(const json& spec, const std::string& where) {
  const json& pattern = json_member(spec, "pattern", where);
  const std::string here = where + ".pattern";
  check_input(pattern.is_object() && pattern.size() == 1, here,
              " is no object of one member; expected {\"String\": ...} or {\"Regex\": ...}");
  if (pattern.contains("String")) {
    return Regex::from_literal(json_string(pattern, "String", here), here);
  }
  return Regex::from_oniguruma(json_string(pattern, "Regex", here), here);
}

PreTokenizer::PreTokenizer(Regex isolated) : to_bytes_(true) {
  steps_.push_back({std::move(isolated)});
}

PreTokenizer PreTokenizer::parse(const json& spec, const std::string& where) {
  PreTokenizer out;
  if (!spec.is_null()) out.add(spec, where);
  check_input(out.to_bytes_, where,
              " does not end with ByteLevel; expected a byte-level tokenizer, the only kind that "
              "mamba3 reads");
  return out;
}

void PreTokenizer::add(const json& spec, const std::string& where) {
  const std::string type = json_string(spec, "type", where);
  check_input(!to_bytes_, where, " is ", quote(type),
              " and stands behind ByteLevel; expected ByteLevel last");
  check_input(steps_.size() < kMostSteps, where, " is one of more than ", kMostSteps,
              " pre-tokenizers; expected a few");
  if (type == "Sequence") {
    std::size_t i = 0;
    for (const json& part : json_list(spec, "pretokenizers", where)) {
      add(part, where + ".pretokenizers[" + std::to_string(i++) + "]");
    }
  } else if (type == "Split") {
    steps_.push_back({parse_split_pattern(spec, where), parse_behavior(spec, where),
                      json_bool(spec, "invert", where)});
  } else if (type == "Digits") {
    const std::string numbers = property_set("N")->items + digits_beyond_numbers();
    steps_.push_back({Regex::from_pcre2("[" + numbers + "]", where),
                      json_bool(spec, "individual_digits", where) ? SplitBehavior::kIsolated
                                                                  : SplitBehavior::kContiguous});
  } else if (type == "WhitespaceSplit") {
    steps_.push_back({Regex::from_oniguruma("\\s", where), SplitBehavior::kRemoved});
  } else {
    check_input(type == "ByteLevel", where, ".type is ", quote(type),
                "; expected ByteLevel, Split, Digits, WhitespaceSplit or Sequence; other "
                "pre-tokenizers are not supported");
    to_bytes_ = true;
    has_prefix_ = json_bool(spec, "add_prefix_space", where);
    prefix_step_ = steps_.size();
    if (json_bool_or(spec, "use_regex", true, where)) {
      steps_.push_back({Regex::from_oniguruma(kByteLevelRegex, where)});
    }
  }
}

void PreTokenizer::split(std::string_view text, RegexDeadline& deadline, WordSink& sink) const {
  split_from(0, text, deadline, sink);
}

void PreTokenizer::split_from(std::size_t step, std::string_view text, RegexDeadline& deadline,
                              WordSink& sink) const {
  if (text.empty()) return;
  std::string prefixed;
  if (has_prefix_ && step == prefix_step_ && !text.starts_with(' ')) {
    prefixed = " ";
    prefixed += text;
    text = prefixed;
  }
  if (step == steps_.size()) {
    sink.take(text);
    return;
  }
  split_once(steps_[step], text, deadline, [&](std::size_t begin, std::size_t end) {
    split_from(step + 1, text.substr(begin, end - begin), deadline, sink);
  });
}

}  // namespace mamba3
