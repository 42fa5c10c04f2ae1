#include <cuda_runtime.h>

#include "core/check.h"
#include "core/gpu.h"

namespace mamba3 {
namespace {

constexpr int kOldestCapability = 80;

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forgets an error that does not stick
  fail(ErrorCode::kUnavailable, what, " failed on the GPU: ", cudaGetErrorString(status), " (",
       cudaGetErrorName(status), ")");
}

}  // namespace

struct Gpu::Impl {
  GpuInfo info;
  int index = 0;
  cudaStream_t stream = nullptr;

  // Of this thread: what it does next is done there.
  cudaStream_t chosen() const {
    cudaSetDevice(index);
    return stream;
  }
  ~Impl() {
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
};

int gpu_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return count;
}

GpuInfo gpu_info(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    cudaGetLastError();
    fail(ErrorCode::kUnavailable, "no NVIDIA GPU can be used: ", cudaGetErrorString(status),
         "; expected a card and a driver for CUDA ", CUDART_VERSION / 1000, "; use --device cpu");
  }
  if (index < 0 || index >= count) {
    fail(ErrorCode::kUnavailable, "this machine has no GPU ", index, "; expected 0 to ", count - 1,
         "; choose another with --device cuda:N");
  }
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "reading its properties");
  GpuInfo info;
  info.name = properties.name;
  info.compute_capability = 10 * properties.major + properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  check_cuda(cudaSetDevice(index), "choosing it");
  std::size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for its memory");
  info.free_bytes = static_cast<std::int64_t>(free_bytes);
  return info;
}

std::shared_ptr<Gpu> Gpu::open(int index) {
  auto impl = std::make_unique<Impl>();
  impl->info = gpu_info(index);
  impl->index = index;
  if (impl->info.compute_capability < kOldestCapability) {
    fail(ErrorCode::kUnavailable, "GPU ", index, ", ", impl->info.name, ", has compute capability ",
         impl->info.compute_capability / 10, ".", impl->info.compute_capability % 10,
         "; expected 8.0 or newer; use --device cpu");
  }
  check_cuda(cudaStreamCreateWithFlags(&impl->stream, cudaStreamNonBlocking), "making a stream");
  return std::shared_ptr<Gpu>(new Gpu(std::move(impl)));
}

Gpu::Gpu(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gpu::~Gpu() = default;

const GpuInfo& Gpu::info() const {
  return impl_->info;
}
void* Gpu::stream() const {
  return impl_->chosen();
}

void* Gpu::allocate(std::size_t bytes) {
  void* p = nullptr;
  cudaSetDevice(impl_->index);
  if (cudaMalloc(&p, bytes) == cudaSuccess) return p;
  cudaGetLastError();
  return nullptr;
}

void Gpu::free(void* p) noexcept {
  cudaFree(p);
}

void Gpu::copy_in(void* to, const void* from_host, std::size_t bytes) {
  // From pageable memory the call returns when the source was read.
  check_cuda(cudaMemcpyAsync(to, from_host, bytes, cudaMemcpyHostToDevice, impl_->chosen()),
             "copying to its memory");
}

void Gpu::copy_out(void* to_host, const void* from, std::size_t bytes) {
  check_cuda(cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDeviceToHost, impl_->chosen()),
             "copying from its memory");
  synchronize();
}

void Gpu::copy(void* to, const void* from, std::size_t bytes) {
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, impl_->chosen()),
             "copying in its memory");
}

void Gpu::zero(void* to, std::size_t bytes) {
  check_cuda(cudaMemsetAsync(to, 0, bytes, impl_->chosen()), "clearing its memory");
}

void* Gpu::allocate_pinned(std::size_t bytes) {
  void* p = nullptr;
  cudaSetDevice(impl_->index);
  if (cudaMallocHost(&p, bytes) == cudaSuccess) return p;
  cudaGetLastError();
  return nullptr;
}

void Gpu::free_pinned(void* p) noexcept {
  cudaFreeHost(p);
}

void Gpu::synchronize() {
  check_cuda(cudaStreamSynchronize(impl_->chosen()), "computing");
}

struct GpuGraph::Impl {
  std::shared_ptr<Gpu> gpu;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;

  ~Impl() {
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }
};

GpuGraph::GpuGraph(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GpuGraph::~GpuGraph() = default;

std::unique_ptr<GpuGraph> GpuGraph::record(const std::shared_ptr<Gpu>& gpu,
                                           const std::function<void()>& launches) {
  auto impl = std::make_unique<Impl>();
  impl->gpu = gpu;
  auto* const stream = static_cast<cudaStream_t>(gpu->stream());
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
             "beginning to record a graph");
  try {
    launches();
  } catch (...) {
    cudaStreamEndCapture(stream, &impl->graph);  // the stream can be used again
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &impl->graph), "recording a graph");
  check_cuda(cudaGraphInstantiate(&impl->executable, impl->graph, 0), "preparing a graph");
  return std::unique_ptr<GpuGraph>(new GpuGraph(std::move(impl)));
}

void GpuGraph::launch() {
  auto* const stream = static_cast<cudaStream_t>(impl_->gpu->stream());
  check_cuda(cudaGraphLaunch(impl_->executable, stream), "starting a graph");
}

}  // namespace mamba3
