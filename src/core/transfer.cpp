#include "core/transfer.h"

#include <cstring>

namespace mamba3 {

void copy_from_host(Gpu* gpu, void* to, const void* from_host, std::size_t bytes) {
  if (bytes == 0) return;
  if (gpu != nullptr) return gpu->copy_in(to, from_host, bytes);
  std::memcpy(to, from_host, bytes);
}

void copy_to_host(Gpu* gpu, void* to_host, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  if (gpu != nullptr) return gpu->copy_out(to_host, from, bytes);
  std::memcpy(to_host, from, bytes);
}

PinnedMemory allocate_pinned(std::size_t bytes, const std::shared_ptr<Gpu>& gpu) {
  return {static_cast<std::byte*>(gpu->allocate_pinned(bytes)), PinnedFree{gpu}};
}

}  // namespace mamba3
