// What the kernels of the skinny path share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba3 {

struct SkinnyArgs {
  const float* x = nullptr;  // [rows, k], rounded already
  std::int64_t x_stride = 0;
  const std::byte* w = nullptr;  // [n, k]
  float* y = nullptr;            // [rows, n]
  std::int64_t y_stride = 0;
  std::int64_t rows = 0;
  std::int64_t k = 0;
};

}  // namespace mamba3
