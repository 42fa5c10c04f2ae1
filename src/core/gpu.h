// One NVIDIA GPU as a Context uses it: memory, and one stream in whose order everything happens.
// Several may be open on one card.
// Builds without CUDA have a stand-in (gpu_none.cpp) that refuses to open.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "mamba3/device.h"

namespace mamba3 {

class Gpu {
 public:
  // kUnavailable with the reason: no CUDA in this build, no driver, no such card, a card too old.
  static std::shared_ptr<Gpu> open(int index);
  ~Gpu();
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const GpuInfo& info() const;
  void* stream() const;  // a cudaStream_t

  void* allocate(std::size_t bytes);  // null when there is no memory
  void free(void* p) noexcept;

  // In stream order. copy_in() returns when `from` may be reused, copy_out() when `to` is filled.
  void copy_in(void* to, const void* from_host, std::size_t bytes);
  void copy_out(void* to_host, const void* from, std::size_t bytes);
  void copy(void* to, const void* from, std::size_t bytes);
  void zero(void* to, std::size_t bytes);
  // Memory of the host that the GPU reads and writes by itself; null when there is none.
  void* allocate_pinned(std::size_t bytes);
  void free_pinned(void* p) noexcept;
  // Waits for everything, and reports what went wrong in it.
  void synchronize();

  // What linear keeps between calls: the library's handle, the algorithms it chose.
  std::shared_ptr<void>& linear_cache() { return linear_cache_; }

  struct Impl;

 private:
  explicit Gpu(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  std::shared_ptr<void> linear_cache_;
};

// What was put into a Gpu's stream, kept to be started again as one: the host's part of a pass of
// many small kernels becomes one call.
class GpuGraph {
 public:
  // Calls `launches`, which only puts work into the stream of `gpu`: it may not wait, nor allocate
  // memory of the GPU. Nothing is computed. Everything that the work points at must stay where it
  // is.
  static std::unique_ptr<GpuGraph> record(const std::shared_ptr<Gpu>& gpu,
                                          const std::function<void()>& launches);
  ~GpuGraph();
  GpuGraph(const GpuGraph&) = delete;
  GpuGraph& operator=(const GpuGraph&) = delete;

  void launch();  // in stream order

  struct Impl;

 private:
  explicit GpuGraph(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mamba3
