// One product by cuBLASLt: what linear is made of on a GPU, and the ceiling that it is compared
// with.
#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "mamba3/context.h"

namespace mamba3 {

struct CublasProduct {
  const void* x = nullptr;  // [rows, k], bf16 or fp32, rows x_stride elements apart
  std::int64_t x_stride = 0;
  const void* w = nullptr;  // [n, k], of the same type, contiguous
  bool bf16 = true;
  std::int64_t k = 0;
  Matrix y;                 // [rows, n]  fp32, or rounded to bf16
  bool accumulate = false;  // y +=
  // A row's bits do not depend on the number of rows: one algorithm serves them all.
  bool same_bits = false;
};

// The library refuses some products whose workspace does not begin on so many bytes, so a part of
// what it is given may stay unused in front.
constexpr std::size_t kCublasAlignBytes = 256;
constexpr std::size_t kCublasUsedBytes = std::size_t{32} << 20;
constexpr std::size_t kCublasWorkspaceBytes = kCublasUsedBytes + kCublasAlignBytes;

// `workspace`: kCublasWorkspaceBytes, anywhere.
void cublas_product(const CublasProduct& product, void* workspace, Context& ctx);

}  // namespace mamba3
