// Launching kernels: in the Context's stream, checked.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/gpu.h"
#include "mamba3/context.h"

namespace mamba3 {

inline cudaStream_t stream_of(Context& ctx) {
  return static_cast<cudaStream_t>(ctx.gpu()->stream());
}

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forgets an error that does not stick
  fail(ErrorCode::kUnavailable, what, " failed on the GPU: ", cudaGetErrorString(status), " (",
       cudaGetErrorName(status), ")");
}

// After each launch: says at once when a kernel could not start.
inline void check_launch(const char* kernel) {
  check_cuda(cudaGetLastError(), kernel);
}

// Enough blocks for `items`, `per_block` each, in the first dimension of a grid.
inline unsigned grid_blocks(std::int64_t items, std::int64_t per_block = 1) {
  const std::int64_t blocks = (items + per_block - 1) / per_block;
  check_input(blocks <= std::numeric_limits<std::int32_t>::max(), "one call needs ", blocks,
              " blocks on the GPU; expected at most ", std::numeric_limits<std::int32_t>::max(),
              "; shorten the segment or lower the batch");
  return static_cast<unsigned>(blocks);
}

// Lets blocks of a kernel have so much shared memory. The limit is the process's: other threads
// start the same kernel for other shapes, in Contexts of their own, so it is never lowered.
void raise_shared(const void* kernel, std::size_t bytes, const char* name);

// Besides lets them stand beside those of other kernels for which this was called: a multiprocessor
// divides its memory anew only when it is empty.
inline void allow_shared(const void* kernel, std::size_t bytes, const char* name) {
  raise_shared(kernel, bytes, name);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared),
             name);
}

struct KernelShape {
  dim3 grid;
  unsigned threads = 0;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks, along x
};

// Starts a kernel that may begin before the one ahead of it in the stream has ended, if that one
// allows it with start_successor(). It calls wait_for_predecessor() in every thread, see
// device/dependent_launch.cuh. Captured into a graph, it stays so.
template <class... Parameters, class... Arguments>
void launch_dependent(const char* name, void (*kernel)(Parameters...), const KernelShape& shape,
                      Gpu& gpu, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(gpu.stream());
  config.attrs = attributes;
  // Only code for Hopper waits: on a later card, which translates the code for 8.0, kernels must
  // not overlap.
  if (gpu.info().compute_capability == 90) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {shape.cluster, 1, 1};
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

template <class... Parameters, class... Arguments>
void launch_dependent(const char* name, void (*kernel)(Parameters...), const KernelShape& shape,
                      Context& ctx, Arguments&&... arguments) {
  launch_dependent(name, kernel, shape, *ctx.gpu(), std::forward<Arguments>(arguments)...);
}

}  // namespace mamba3
