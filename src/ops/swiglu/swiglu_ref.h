// The oracle: the formula in double.
#pragma once

#include <cstdint>
#include <vector>

namespace mamba3 {

// y [rows, f] of contiguous h [rows, 2 f].
std::vector<double> swiglu_ref(const std::vector<double>& h, std::int64_t rows, std::int64_t f);

}  // namespace mamba3
