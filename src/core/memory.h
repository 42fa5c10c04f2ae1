// Large blocks of memory: workspaces, weights, states, in the host's memory or a GPU's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/gpu.h"

namespace mamba3 {

constexpr std::size_t kCacheLineBytes = 64;  // and those of an AVX-512 vector

struct MemoryFree {
  std::size_t align_bytes = kCacheLineBytes;
  std::shared_ptr<Gpu> gpu;  // null: the host's
  void operator()(std::byte* p) const;
};

using Memory = std::unique_ptr<std::byte[], MemoryFree>;

// `bytes` of indeterminate contents that begin on a multiple of kCacheLineBytes; null when there is
// no memory. The host's system is asked for huge pages where it has them: products that walk
// through many rows at once spend a tenth of their time looking up small ones.
Memory allocate_memory(std::size_t bytes, const std::shared_ptr<Gpu>& gpu = nullptr);

// In the memory of a GPU, or of the host where it is null.
void set_zero(Gpu* gpu, void* to, std::size_t bytes);
void copy_within(Gpu* gpu, void* to, const void* from, std::size_t bytes);

std::string gigabytes(std::int64_t bytes);  // "3.58 GB", of 10^9 bytes

}  // namespace mamba3
