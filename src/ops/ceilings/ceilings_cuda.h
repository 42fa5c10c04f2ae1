// The ceilings of a Context on a GPU: ops/ceilings/ceilings.h.
#pragma once

#include "ops/ceilings/ceilings.h"

namespace mamba3 {

double measured_bandwidth_cuda(MemoryTraffic traffic, Context& ctx);
// cuBLASLt on bf16 operands, without the rounding of x that linear adds.
double measured_gemm_rate_cuda(const GemmShape& shape, Compute compute, Context& ctx);

}  // namespace mamba3
