// The scan in chunks on the tensor cores of every card from compute capability 8.0 on.
#pragma once

#include "ops/mamba3_scan/mamba3_scan.h"

namespace mamba3 {

void mamba3_scan_mma_cuda(const Mamba3ScanArgs& args, Context& ctx);

}  // namespace mamba3
