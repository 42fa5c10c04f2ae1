// The oracle: the formulas in double.
#pragma once

#include <cstdint>
#include <vector>

namespace mamba3 {

// grad_h [rows, 2 f] of contiguous h [rows, 2 f] and grad_y [rows, f].
std::vector<double> swiglu_backward_ref(const std::vector<double>& h,
                                        const std::vector<double>& grad_y, std::int64_t rows,
                                        std::int64_t f);

}  // namespace mamba3
