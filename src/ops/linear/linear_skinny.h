// What the kernels of the skinny path share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mamba3 {

// Every kernel makes all rows of some outputs. Each sum of a row and an output lives in a vector of
// its own until it is complete, so its bits cannot depend on what is computed beside it.
struct SkinnyArgs {
  const std::byte* x = nullptr;  // [rows, k], in the type that the kernel multiplies
  std::int64_t x_stride_bytes = 0;
  const std::byte* w = nullptr;  // [n, k], as stored
  float* y = nullptr;            // [rows, n]
  std::int64_t y_stride = 0;
  std::int64_t rows = 0;
  std::int64_t k = 0;
};

// Outputs [begin, end).
using SkinnyKernel = void (*)(const SkinnyArgs& args, std::int64_t begin, std::int64_t end);

// x bf16, for processors where multiplies_bf16(); x86 only.
void skinny_bf16_products(const SkinnyArgs& args, std::int64_t begin, std::int64_t end);
void skinny_bf16_products_f32_weights(const SkinnyArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace mamba3
