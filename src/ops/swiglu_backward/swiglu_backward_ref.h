// The oracle, in double; in float the plain run that the tolerance rule measures by.
#pragma once

#include <cstdint>
#include <vector>

namespace mamba3 {

// grad_h [rows, 2 f] of contiguous h [rows, 2 f] and grad_y [rows, f].
template <class T>
std::vector<T> swiglu_backward_ref(const std::vector<T>& h, const std::vector<T>& grad_y,
                                   std::int64_t rows, std::int64_t f);

extern template std::vector<double> swiglu_backward_ref(const std::vector<double>&,
                                                        const std::vector<double>&, std::int64_t,
                                                        std::int64_t);
extern template std::vector<float> swiglu_backward_ref(const std::vector<float>&,
                                                       const std::vector<float>&, std::int64_t,
                                                       std::int64_t);

}  // namespace mamba3
