// Launching kernels: in the Context's stream, checked.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

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

}  // namespace mamba3
