// Turns sampled ids into text as it becomes certain.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mamba3/tokenizer.h"

namespace mamba3 {

class TextStream {
 public:
  // `tokenizer` may be null: then there is no text. Both must outlive the stream.
  TextStream(const Tokenizer* tokenizer, const std::vector<std::string>& stop);

  // Takes one more id; returns the text that has become certain: whole characters that no stop text
  // can still claim.
  std::string push(std::int32_t id);
  // True once a stop text has appeared; it and all that follows is left out.
  bool stopped() const { return stopped_; }
  // What was held back, at the end of a sample.
  std::string finish();
  // Everything returned so far.
  const std::string& text() const { return text_; }

 private:
  std::string release(std::string held);

  const Tokenizer* tokenizer_;
  const std::vector<std::string>* stop_;
  Utf8Stream characters_;
  std::string held_;  // whole characters that may be the beginning of a stop text
  std::string text_;
  bool stopped_ = false;
};

}  // namespace mamba3
