// One block of memory cut into parts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/arena.h"

namespace mamba3 {

// Hands out parts of one block of memory; with no block it only measures.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t size_bytes = static_cast<std::size_t>(count) * sizeof(T);
    T* out = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (size_bytes + Arena::kAlignBytes - 1) / Arena::kAlignBytes * Arena::kAlignBytes;
    return out;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

}  // namespace mamba3
