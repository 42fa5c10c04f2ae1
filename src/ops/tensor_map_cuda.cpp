#include <cuda_runtime.h>

#include <algorithm>

#include "core/check.h"
#include "ops/tensor_map.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kBoxRowBytes = 128;

// The driver's function, looked up by name: nothing links to the driver, which a machine without a
// GPU has not.
decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              12000, cudaEnableDefault, &found);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr) {
    fail(ErrorCode::kUnavailable,
         "the NVIDIA driver has no cuTensorMapEncodeTiled; expected one for CUDA 12 or newer");
  }
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

bool tensor_map_takes(const ConstMatrix& matrix) {
  const std::int64_t stride_bytes =
      matrix.shape[0] > 1 ? matrix.stride[0] * dtype_bytes(matrix.dtype) : 0;
  return (reinterpret_cast<std::uintptr_t>(matrix.data) |
          static_cast<std::uintptr_t>(stride_bytes)) %
             16 ==
         0;
}

CUtensorMap tensor_map(const ConstMatrix& matrix, int box_rows) {
  static const auto encode = find_encoder();
  const auto bytes = static_cast<std::int64_t>(dtype_bytes(matrix.dtype));
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(matrix.shape[1]),
                                 static_cast<cuuint64_t>(matrix.shape[0])};
  // One row has no stride, which must be a multiple of 16 all the same.
  const std::int64_t stride = matrix.shape[0] > 1 ? matrix.stride[0] * bytes : kBoxRowBytes;
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(kBoxRowBytes / bytes),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult status = encode(
      &map, matrix.is_bf16() ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      2, const_cast<void*>(matrix.data), extents, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    fail(ErrorCode::kUnavailable, "cuTensorMapEncodeTiled failed with ", static_cast<int>(status),
         " on a matrix of ", shape_string(matrix.shape), ", rows ", stride, " bytes apart");
  }
  return map;
}

}  // namespace mamba3
