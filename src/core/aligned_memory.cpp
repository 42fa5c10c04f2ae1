#include "core/aligned_memory.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mamba3 {
namespace {

constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

}  // namespace

void AlignedFree::operator()(std::byte* p) const {
  ::operator delete[](p, std::align_val_t{align_bytes});
}

AlignedMemory allocate_aligned(std::size_t bytes) {
  const std::size_t align = bytes < kHugePageBytes ? kCacheLineBytes : kHugePageBytes;
  auto* p = static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{align}, std::nothrow));
#if defined(__linux__)
  // Only whole pages, so that a block never takes more memory than was asked for. Where advice is
  // refused, small pages serve as well.
  const std::size_t whole = bytes / kHugePageBytes * kHugePageBytes;
  if (p != nullptr && whole > 0) ::madvise(p, whole, MADV_HUGEPAGE);
#endif
  return AlignedMemory(p, AlignedFree{align});
}

}  // namespace mamba3
