// Between the memory of the host and that of a Context's device.
#pragma once

#include <cstddef>
#include <memory>

#include "core/gpu.h"

namespace mamba3 {

// As Gpu::copy_in and copy_out; without a GPU from the host's memory to itself.
void copy_from_host(Gpu* gpu, void* to, const void* from_host, std::size_t bytes);
void copy_to_host(Gpu* gpu, void* to_host, const void* from, std::size_t bytes);

struct PinnedFree {
  std::shared_ptr<Gpu> gpu;
  void operator()(std::byte* p) const { gpu->free_pinned(p); }
};

// Memory of the host that a GPU reads by itself: a copy from there waits for nothing ahead of it in
// the stream, and what is copied must stay until it was. Null when there is none.
using PinnedMemory = std::unique_ptr<std::byte[], PinnedFree>;
PinnedMemory allocate_pinned(std::size_t bytes, const std::shared_ptr<Gpu>& gpu);

}  // namespace mamba3
