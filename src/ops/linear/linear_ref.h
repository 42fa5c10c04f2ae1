// The oracle: plain sums in double.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/linear/linear.h"

namespace mamba3 {

// y [rows, n] of contiguous x [rows, k] and w [n, k]. Compute::kBf16 rounds both to bf16 first.
std::vector<double> linear_ref(const std::vector<float>& x, const std::vector<float>& w,
                               std::int64_t rows, std::int64_t n, std::int64_t k, Compute compute);

}  // namespace mamba3
