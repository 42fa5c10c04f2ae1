// oneDNN's matrix product of bf16 numbers, on the calling thread alone. For processors that have
// such products: multiplies_bf16().
#pragma once

#include <cstdint>

#include "mamba3/tensor.h"

namespace mamba3 {

// y [m, n] = x [m, k] times w, overwritten; rows are `..._stride` elements apart. With at least two
// rows and two columns, an element's bits depend on its row of x and its column of w alone: oneDNN
// adds in the order of k whatever the size. One row or one column goes another way there, so they
// are not allowed here (tests/ops/linear_test.cpp watches over all of this).
struct OneDnnGemmArgs {
  const Bf16* x = nullptr;  // [m, k]
  std::int64_t x_stride = 0;
  const Bf16* w = nullptr;  // [n, k]
  std::int64_t w_stride = 0;
  float* y = nullptr;  // [m, n]
  std::int64_t y_stride = 0;
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
};

void onednn_gemm(const OneDnnGemmArgs& args);

}  // namespace mamba3
