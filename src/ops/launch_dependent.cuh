// Launching a kernel that may start before the one before it in the stream has ended. The kernel
// calls wait_for_predecessor() (device/async_copy.cuh) before it touches what that one writes.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "ops/launch.cuh"

namespace mamba3 {

// `early` false: an ordinary launch, and the waiting is over at once.
template <class... Args>
void launch_dependent(void (*kernel)(Args...), unsigned blocks, unsigned threads,
                      std::size_t shared_bytes, cudaStream_t stream, bool early, const char* what,
                      const Args&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, kernel, args...), what);
}

}  // namespace mamba3
