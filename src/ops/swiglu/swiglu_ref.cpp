#include "ops/swiglu/swiglu_ref.h"

#include <cmath>

namespace mamba3 {

std::vector<double> swiglu_ref(const std::vector<double>& h, std::int64_t rows, std::int64_t f) {
  std::vector<double> y;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < f; ++i) {
      const double up = h[row * 2 * f + i];
      const double gate = h[row * 2 * f + f + i];
      y.push_back(up * (gate / (1 + std::exp(-gate))));
    }
  }
  return y;
}

}  // namespace mamba3
