#include "ops/swiglu_backward/swiglu_backward_ref.h"

#include <cmath>

namespace mamba3 {

std::vector<double> swiglu_backward_ref(const std::vector<double>& h,
                                        const std::vector<double>& grad_y, std::int64_t rows,
                                        std::int64_t f) {
  std::vector<double> grad_h(h.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < f; ++i) {
      const double up = h[row * 2 * f + i], gate = h[row * 2 * f + f + i];
      const double grad = grad_y[row * f + i];
      const double s = 1 / (1 + std::exp(-gate));
      grad_h[row * 2 * f + i] = grad * (gate * s);
      grad_h[row * 2 * f + f + i] = grad * up * (s + gate * s * (1 - s));
    }
  }
  return grad_h;
}

}  // namespace mamba3
