// Windows of a token cache as batches: all documents one after the other, cut every `length`
// tokens; each token of a window predicts its successor, the last one the first of the next window.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "train/loss_and_gradients.h"
#include "train/token_cache.h"

namespace mamba3 {

struct WindowBatch {
  std::vector<std::int32_t> ids, targets;
  std::vector<std::int64_t> cu_seqlens;

  TrainingBatch view() const { return {ids, targets, cu_seqlens}; }
};

class WindowReader {
 public:
  // Refuses data of less than one window; `what` names them.
  WindowReader(std::shared_ptr<const TokenCache> cache, std::int64_t length,
               const std::string& what);

  std::int64_t windows() const { return windows_; }
  std::int64_t length() const { return length_; }
  // How many windows at once stay within `tokens`; at least one.
  std::int64_t windows_in(std::int64_t tokens) const;
  // Each window is a sequence of its own: nothing is carried from one to the next.
  WindowBatch read(std::span<const std::int64_t> windows) const;

 private:
  std::shared_ptr<const TokenCache> cache_;
  std::int64_t length_;
  std::int64_t windows_;
};

}  // namespace mamba3
