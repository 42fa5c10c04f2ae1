// The scan in chunks, on the tensor cores of Hopper (compute capability 9.0).
#pragma once

#include "ops/mamba3_scan/mamba3_scan.h"

namespace mamba3 {

void mamba3_scan_chunked_cuda(const Mamba3ScanArgs& args, Context& ctx);

}  // namespace mamba3
