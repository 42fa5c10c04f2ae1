#include "ops/rms_norm_backward/rms_norm_backward_ref.h"

#include <cmath>

namespace mamba3 {

// y_i = x_i w_i / rms with rms = sqrt(mean of x_j^2 + eps): d rms / d x_i = x_i / (d rms).
template <class T>
RmsNormRefGradients<T> rms_norm_backward_ref(const std::vector<T>& residual,
                                             const std::vector<T>& weight,
                                             const std::vector<T>& grad_y, T eps) {
  const std::size_t d = weight.size();
  RmsNormRefGradients<T> out{std::vector<T>(residual.size()), std::vector<T>(d)};
  for (std::size_t row = 0; row < residual.size(); row += d) {
    T mean_square = 0;
    for (std::size_t i = 0; i < d; ++i) {
      mean_square += residual[row + i] * residual[row + i] / static_cast<T>(d);
    }
    const T rms = std::sqrt(mean_square + eps);
    T grad_rms = 0;
    for (std::size_t i = 0; i < d; ++i) {
      out.weight[i] += grad_y[row + i] * (residual[row + i] / rms);
      grad_rms -= grad_y[row + i] * weight[i] * (residual[row + i] / rms) / rms;
    }
    for (std::size_t i = 0; i < d; ++i) {
      out.residual[row + i] = grad_y[row + i] * weight[i] / rms +
                              grad_rms * (residual[row + i] / rms) / static_cast<T>(d);
    }
  }
  return out;
}

template RmsNormRefGradients<double> rms_norm_backward_ref(const std::vector<double>&,
                                                           const std::vector<double>&,
                                                           const std::vector<double>&, double);
template RmsNormRefGradients<float> rms_norm_backward_ref(const std::vector<float>&,
                                                          const std::vector<float>&,
                                                          const std::vector<float>&, float);

}  // namespace mamba3
