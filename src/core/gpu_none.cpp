// A build without CUDA.
#include "core/check.h"
#include "core/gpu.h"

namespace mamba3 {
namespace {

[[noreturn]] void refuse() {
  fail(ErrorCode::kUnavailable,
       "this build has no GPU backend; expected --device cpu, or a build with the preset cuda");
}

}  // namespace

struct Gpu::Impl {};

int gpu_count() {
  return 0;
}
GpuInfo gpu_info(int) {
  refuse();
}
std::shared_ptr<Gpu> Gpu::open(int) {
  refuse();
}
Gpu::~Gpu() = default;
const GpuInfo& Gpu::info() const {
  refuse();
}
void* Gpu::stream() const {
  refuse();
}
void* Gpu::allocate(std::size_t) {
  refuse();
}
void Gpu::free(void*) noexcept {}
void Gpu::copy_in(void*, const void*, std::size_t) {
  refuse();
}
void Gpu::copy_out(void*, const void*, std::size_t) {
  refuse();
}
void Gpu::copy(void*, const void*, std::size_t) {
  refuse();
}
void Gpu::zero(void*, std::size_t) {
  refuse();
}
void* Gpu::allocate_pinned(std::size_t) {
  refuse();
}
void Gpu::free_pinned(void*) noexcept {}
void Gpu::synchronize() {
  refuse();
}

struct GpuGraph::Impl {};
GpuGraph::~GpuGraph() = default;
std::unique_ptr<GpuGraph> GpuGraph::record(const std::shared_ptr<Gpu>&,
                                           const std::function<void()>&) {
  refuse();
}
void GpuGraph::launch() {
  refuse();
}

}  // namespace mamba3
