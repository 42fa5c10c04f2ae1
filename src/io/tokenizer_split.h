// Pre-tokenizers: cutting text into the words that byte-pair encoding takes one by one.
#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer_regex.h"

namespace mamba3 {

// {"pattern": {"String": ...}} or {"pattern": {"Regex": ...}} of an object.
Regex parse_split_pattern(const nlohmann::json& spec, const std::string& where);

// What a split does with the pieces that its regex matched.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  Regex regex;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool inverted = false;  // the pieces between matches count as the matches
};

// Takes words in their order.
class WordSink {
 public:
  virtual void take(std::string_view word) = 0;

 protected:
  ~WordSink() = default;
};

class PreTokenizer {
 public:
  // The "pre_tokenizer" of a tokenizer.json. Refuses kinds that it does not know, and orders in
  // which the text would not end as bytes.
  static PreTokenizer parse(const nlohmann::json& spec, const std::string& where);
  // One split by this regex.
  explicit PreTokenizer(Regex isolated);

  // `text` is well-formed; the words are bytes and may lie in memory that ends with the call.
  void split(std::string_view text, RegexDeadline& deadline, WordSink& sink) const;

 private:
  PreTokenizer() = default;
  void add(const nlohmann::json& spec, const std::string& where);
  void split_from(std::size_t step, std::string_view text, RegexDeadline& deadline,
                  WordSink& sink) const;

  std::vector<SplitStep> steps_;
  std::size_t prefix_step_ = 0;  // the step before which a blank is put before each piece
  bool has_prefix_ = false;
  bool to_bytes_ = false;  // ends with ByteLevel
};

}  // namespace mamba3
