// One product by cuBLASLt: what linear and its backward pass are made of on a GPU, and the ceiling
// that they are compared with.
#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "mamba3/context.h"

namespace mamba3 {

// How the sum along k may be cut into pieces that are made side by side.
enum class CublasSums : std::uint8_t {
  kAny,   // as the library likes
  kFp32,  // pieces in fp32 in the workspace, added in a fixed order
  // Not at all, and one algorithm serves any number of rows: a row's bits do not depend on it.
  kWhole,
};

// y = x w^T of x [rows, k] and w [n, k], both bf16 or both fp32. A transposed factor lies in memory
// as its transpose does, x as [k, rows] and w as [k, n].
struct CublasProduct {
  const void* x = nullptr;
  std::int64_t x_stride = 0;  // elements from row to row, as it lies in memory
  const void* w = nullptr;
  std::int64_t w_stride = 0;
  bool bf16 = true;
  std::int64_t k = 0;
  Matrix y;                 // [rows, n]  fp32, or rounded to bf16
  bool accumulate = false;  // y +=
  CublasSums sums = CublasSums::kAny;
  bool x_transposed = false;
  bool w_transposed = false;
};

// The library refuses some products whose workspace does not begin on so many bytes, so a part of
// what it is given may stay unused in front.
constexpr std::size_t kCublasAlignBytes = 256;
constexpr std::size_t kCublasUsedBytes = std::size_t{32} << 20;
constexpr std::size_t kCublasWorkspaceBytes = kCublasUsedBytes + kCublasAlignBytes;

// `workspace`: kCublasWorkspaceBytes, anywhere. The algorithm hangs on the shape alone and is not
// measured, so that two runs add in the same order.
void cublas_product(const CublasProduct& product, void* workspace, Context& ctx);

}  // namespace mamba3
