#include "engine/text_stream.h"

#include <algorithm>

namespace mamba3 {
namespace {

// Length of the longest end of `text` that is a proper beginning of `stop`.
std::size_t overlap(const std::string& text, const std::string& stop) {
  std::size_t length = std::min(text.size(), stop.size() - 1);
  while (length > 0 && text.compare(text.size() - length, length, stop, 0, length) != 0) --length;
  return length;
}

}  // namespace

TextStream::TextStream(const Tokenizer* tokenizer, const std::vector<std::string>& stop)
    : tokenizer_(tokenizer), stop_(&stop) {}

std::string TextStream::release(std::string certain) {
  text_ += certain;
  return certain;
}

std::string TextStream::push(std::int32_t id) {
  if (tokenizer_ == nullptr || stopped_) return {};
  held_ += characters_.push(tokenizer_->token_bytes(id, /*skip_special=*/true));
  std::size_t first_stop = std::string::npos;
  for (const std::string& stop : *stop_) first_stop = std::min(first_stop, held_.find(stop));
  if (first_stop != std::string::npos) {
    stopped_ = true;
    return release(held_.substr(0, first_stop));
  }
  std::size_t keep = 0;
  for (const std::string& stop : *stop_) keep = std::max(keep, overlap(held_, stop));
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, certain.size());
  return release(std::move(certain));
}

std::string TextStream::finish() {
  if (tokenizer_ == nullptr || stopped_) return {};
  return release(held_ + characters_.finish());
}

}  // namespace mamba3
