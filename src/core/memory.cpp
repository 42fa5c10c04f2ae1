#include "core/memory.h"

#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/check.h"

namespace mamba3 {
namespace {

constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

Memory allocate_on_host(std::size_t bytes) {
  const std::size_t align = bytes < kHugePageBytes ? kCacheLineBytes : kHugePageBytes;
  auto* p = static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{align}, std::nothrow));
#if defined(__linux__)
  // Only whole pages, so that a block never takes more memory than was asked for. Where advice is
  // refused, small pages serve as well.
  const std::size_t whole = bytes / kHugePageBytes * kHugePageBytes;
  if (p != nullptr && whole > 0) ::madvise(p, whole, MADV_HUGEPAGE);
#endif
  return Memory(p, MemoryFree{align, nullptr});
}

}  // namespace

void MemoryFree::operator()(std::byte* p) const {
  if (gpu) {
    gpu->free(p);
  } else {
    ::operator delete[](p, std::align_val_t{align_bytes});
  }
}

Memory allocate_memory(std::size_t bytes, const std::shared_ptr<Gpu>& gpu) {
  if (!gpu) return allocate_on_host(bytes);
  return Memory(static_cast<std::byte*>(gpu->allocate(bytes)), MemoryFree{kCacheLineBytes, gpu});
}

void set_zero(Gpu* gpu, void* to, std::size_t bytes) {
  if (gpu != nullptr) return gpu->zero(to, bytes);
  std::memset(to, 0, bytes);
}

void copy_within(Gpu* gpu, void* to, const void* from, std::size_t bytes) {
  if (gpu != nullptr) return gpu->copy(to, from, bytes);
  std::memcpy(to, from, bytes);
}

std::string gigabytes(std::int64_t bytes) {
  const std::int64_t hundredths = (bytes + 5'000'000) / 10'000'000;
  return str(hundredths / 100, ".", hundredths % 100 / 10, hundredths % 10, " GB");
}

}  // namespace mamba3
