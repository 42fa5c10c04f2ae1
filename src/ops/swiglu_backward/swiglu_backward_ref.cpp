#include "ops/swiglu_backward/swiglu_backward_ref.h"

#include <cmath>

namespace mamba3 {

template <class T>
std::vector<T> swiglu_backward_ref(const std::vector<T>& h, const std::vector<T>& grad_y,
                                   std::int64_t rows, std::int64_t f) {
  std::vector<T> grad_h(h.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < f; ++i) {
      const T up = h[row * 2 * f + i], gate = h[row * 2 * f + f + i];
      const T grad = grad_y[row * f + i];
      const T s = 1 / (1 + std::exp(-gate));
      grad_h[row * 2 * f + i] = grad * (gate * s);
      grad_h[row * 2 * f + f + i] = grad * up * (s + gate * s * (1 - s));
    }
  }
  return grad_h;
}

template std::vector<double> swiglu_backward_ref(const std::vector<double>&,
                                                 const std::vector<double>&, std::int64_t,
                                                 std::int64_t);
template std::vector<float> swiglu_backward_ref(const std::vector<float>&,
                                                const std::vector<float>&, std::int64_t,
                                                std::int64_t);

}  // namespace mamba3
