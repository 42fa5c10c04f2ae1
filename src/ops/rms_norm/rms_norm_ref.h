// The oracle: everything in double.
#pragma once

#include <cstdint>
#include <vector>

namespace mamba3 {

// y [rows, d] of contiguous residual [rows, d] (hidden, if any, is added already by the caller).
std::vector<double> rms_norm_ref(const std::vector<double>& residual,
                                 const std::vector<double>& weight, std::int64_t rows,
                                 std::int64_t d, double eps);

}  // namespace mamba3
