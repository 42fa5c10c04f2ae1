// oneDNN's matrix product, on the calling thread alone.
#pragma once

#include <cstdint>

namespace mamba3 {

// y [m, n] = x [m, k] times w, overwritten; rows are `..._stride` elements apart. With at least two
// rows and two columns, an element's bits depend on its row of x and its column of w alone: oneDNN
// adds in the order of k whatever the size. One row or one column goes another way there, so they
// are not allowed here (tests/ops/linear_test.cpp watches over all of this).
template <class X>
struct GemmArgs {
  const X* x = nullptr;  // [m, k]
  std::int64_t x_stride = 0;
  const X* w = nullptr;  // the layout that oneDNN is fastest with: see below
  std::int64_t w_stride = 0;
  float* y = nullptr;  // [m, n]
  std::int64_t y_stride = 0;
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
};

struct Bf16;

void onednn_gemm(const GemmArgs<float>& args);  // w [k, n]
void onednn_gemm(const GemmArgs<Bf16>& args);   // w [n, k]

}  // namespace mamba3
