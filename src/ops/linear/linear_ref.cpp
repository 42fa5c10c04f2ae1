#include "ops/linear/linear_ref.h"

namespace mamba3 {

std::vector<double> linear_ref(const std::vector<float>& x, const std::vector<float>& w,
                               std::int64_t rows, std::int64_t n, std::int64_t k, Compute compute) {
  const auto rounded = [compute](float value) {
    return compute == Compute::kBf16 ? to_float(to_bf16(value)) : value;
  };
  std::vector<double> y(static_cast<std::size_t>(rows * n));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t out = 0; out < n; ++out) {
      double sum = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        sum += static_cast<double>(rounded(x[row * k + i])) * rounded(w[out * k + i]);
      }
      y[row * n + out] = sum;
    }
  }
  return y;
}

}  // namespace mamba3
