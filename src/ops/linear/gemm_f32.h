// Our own fp32 matrix product, on the calling thread alone.
#pragma once

#include <cstdint>

namespace mamba3 {

// Columns of w side by side in memory.
inline constexpr std::int64_t kGemmPanel = 16;
// Neighbours of k that are summed in one chain.
inline constexpr std::int64_t kGemmDepth = 384;

// y [m, n] = x [m, k] times w, overwritten or added to. An element is made of sums over
// kGemmDepth neighbours of k, each one chain of fused multiply-adds, added up in order: its bits
// depend on its row of x and its column of w alone (and on what it is added to). oneDNN promises
// this for fp32 on some processors only.
struct GemmF32Args {
  const float* x = nullptr;  // [m, k] rows x_stride apart
  std::int64_t x_stride = 0;
  const float* w = nullptr;   // [panels, k, kGemmPanel]; the last panel is filled up with anything
  std::int64_t w_stride = 0;  // from panel to panel
  float* y = nullptr;         // [m, n] rows y_stride apart
  std::int64_t y_stride = 0;
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  bool accumulate = false;  // y += x w
};

void gemm_f32(const GemmF32Args& args);

}  // namespace mamba3
