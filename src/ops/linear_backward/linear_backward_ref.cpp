#include "ops/linear_backward/linear_backward_ref.h"

namespace mamba3 {

template <class T>
LinearRefGradients<T> linear_backward_ref(const std::vector<T>& x, const std::vector<T>& w,
                                          const std::vector<T>& grad_y, std::int64_t rows,
                                          std::int64_t n, std::int64_t k) {
  LinearRefGradients<T> out{std::vector<T>(static_cast<std::size_t>(rows * k)),
                            std::vector<T>(static_cast<std::size_t>(n * k))};
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t j = 0; j < n; ++j) {
      for (std::int64_t i = 0; i < k; ++i) {
        out.x[row * k + i] += grad_y[row * n + j] * w[j * k + i];
        out.w[j * k + i] += grad_y[row * n + j] * x[row * k + i];
      }
    }
  }
  return out;
}

template LinearRefGradients<double> linear_backward_ref(const std::vector<double>&,
                                                        const std::vector<double>&,
                                                        const std::vector<double>&, std::int64_t,
                                                        std::int64_t, std::int64_t);
template LinearRefGradients<float> linear_backward_ref(const std::vector<float>&,
                                                       const std::vector<float>&,
                                                       const std::vector<float>&, std::int64_t,
                                                       std::int64_t, std::int64_t);

}  // namespace mamba3
