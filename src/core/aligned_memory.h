// Large blocks of memory: workspaces, weights that were made here, states.
#pragma once

#include <cstddef>
#include <memory>

namespace mamba3 {

constexpr std::size_t kCacheLineBytes = 64;  // and those of an AVX-512 vector

struct AlignedFree {
  std::size_t align_bytes = kCacheLineBytes;
  void operator()(std::byte* p) const;
};

using AlignedMemory = std::unique_ptr<std::byte[], AlignedFree>;

// `bytes` of indeterminate contents that begin on a multiple of kCacheLineBytes; null when there is
// no memory. The system is asked for huge pages where it has them: products that walk through many
// rows at once spend a tenth of their time looking up small ones.
AlignedMemory allocate_aligned(std::size_t bytes);

}  // namespace mamba3
