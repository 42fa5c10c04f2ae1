#include "ops/rms_norm/rms_norm_ref.h"

#include <cmath>

namespace mamba3 {

std::vector<double> rms_norm_ref(const std::vector<double>& residual,
                                 const std::vector<double>& weight, std::int64_t rows,
                                 std::int64_t d, double eps) {
  std::vector<double> y(residual.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    double mean_square = 0;
    for (std::int64_t i = 0; i < d; ++i) {
      mean_square += residual[row * d + i] * residual[row * d + i] / static_cast<double>(d);
    }
    for (std::int64_t i = 0; i < d; ++i) {
      y[row * d + i] = residual[row * d + i] / std::sqrt(mean_square + eps) * weight[i];
    }
  }
  return y;
}

}  // namespace mamba3
