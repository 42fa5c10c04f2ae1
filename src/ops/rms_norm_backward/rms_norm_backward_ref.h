// The oracle, in double; in float the plain run that the tolerance rule measures by.
#pragma once

#include <cstdint>
#include <vector>

namespace mamba3 {

template <class T>
struct RmsNormRefGradients {
  std::vector<T> residual;  // [rows, d], the norm's part
  std::vector<T> weight;    // [d]
};

// Of contiguous residual and grad_y [rows, d].
template <class T>
RmsNormRefGradients<T> rms_norm_backward_ref(const std::vector<T>& residual,
                                             const std::vector<T>& weight,
                                             const std::vector<T>& grad_y, T eps);

extern template RmsNormRefGradients<double> rms_norm_backward_ref(const std::vector<double>&,
                                                                  const std::vector<double>&,
                                                                  const std::vector<double>&,
                                                                  double);
extern template RmsNormRefGradients<float> rms_norm_backward_ref(const std::vector<float>&,
                                                                 const std::vector<float>&,
                                                                 const std::vector<float>&, float);

}  // namespace mamba3
