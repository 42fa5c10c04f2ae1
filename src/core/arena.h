// Workspace memory: a stack of blocks that grows when first needed and is reused ever after, so
// that a warm prefill or decode allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/memory.h"

namespace mamba3 {

class Arena {
 public:
  static constexpr std::size_t kAlignBytes = kCacheLineBytes;

  // Of the host's memory, or of a GPU's.
  explicit Arena(std::shared_ptr<Gpu> gpu = nullptr) : gpu_(std::move(gpu)) {}

  // Grows the arena so that `bytes` more fit without another allocation.
  void reserve(std::size_t bytes);
  // Memory with kAlignBytes alignment and indeterminate contents; valid until the enclosing
  // ArenaScope ends.
  void* allocate(std::size_t bytes);
  std::size_t capacity_bytes() const;
  std::size_t peak_bytes() const { return peak_bytes_; }

 private:
  friend class ArenaScope;
  struct Block {
    Memory data;
    std::size_t size_bytes = 0;
    std::size_t used_bytes = 0;
  };
  std::size_t used_bytes() const;
  void add_block(std::size_t bytes);

  std::shared_ptr<Gpu> gpu_;
  std::vector<Block> blocks_;
  std::size_t current_ = 0;  // the block that is being filled
  std::size_t peak_bytes_ = 0;
};

// Gives back, at its end, everything that was allocated since its start. Scopes nest like calls.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena);
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

  template <class T>
  T* allocate(std::int64_t count) {
    return static_cast<T*>(arena_.allocate(static_cast<std::size_t>(count) * sizeof(T)));
  }

 private:
  Arena& arena_;
  std::size_t block_;
  std::size_t used_bytes_;
};

}  // namespace mamba3
