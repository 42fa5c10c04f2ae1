// Windows of documents as batches: all of them one after the other, cut every `length` tokens; each
// token of a window predicts its successor, the last one the first of the next window.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "train/batch_source.h"
#include "train/token_selection.h"

namespace mamba3 {

class WindowReader {
 public:
  // Refuses data of less than one window; `what` names them.
  WindowReader(TokenSelection tokens, std::int64_t length, const std::string& what);

  std::int64_t windows() const { return windows_; }
  std::int64_t length() const { return length_; }
  // Each window is a sequence of its own: nothing is carried from one to the next.
  SequenceBatch read(std::span<const std::int64_t> windows) const;
  void append(std::int64_t window, SequenceBatch& batch) const;
  // Tokens of a window at which documents begin, ascending.
  std::vector<std::int64_t> document_begins(std::int64_t window) const;

 private:
  TokenSelection tokens_;
  std::int64_t length_;
  std::int64_t windows_;
};

}  // namespace mamba3
