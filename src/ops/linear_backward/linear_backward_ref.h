// The oracle, in double; in float the plain run that the tolerance rule measures by.
#pragma once

#include <cstdint>
#include <vector>

namespace mamba3 {

template <class T>
struct LinearRefGradients {
  std::vector<T> x;  // [rows, k]
  std::vector<T> w;  // [n, k]
};

// Of contiguous x [rows, k], w [n, k] and grad_y [rows, n], rounded by the caller where rounding
// is meant.
template <class T>
LinearRefGradients<T> linear_backward_ref(const std::vector<T>& x, const std::vector<T>& w,
                                          const std::vector<T>& grad_y, std::int64_t rows,
                                          std::int64_t n, std::int64_t k);

extern template LinearRefGradients<double> linear_backward_ref(const std::vector<double>&,
                                                               const std::vector<double>&,
                                                               const std::vector<double>&,
                                                               std::int64_t, std::int64_t,
                                                               std::int64_t);
extern template LinearRefGradients<float> linear_backward_ref(const std::vector<float>&,
                                                              const std::vector<float>&,
                                                              const std::vector<float>&,
                                                              std::int64_t, std::int64_t,
                                                              std::int64_t);

}  // namespace mamba3
