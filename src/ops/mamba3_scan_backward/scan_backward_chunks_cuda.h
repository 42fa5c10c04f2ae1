// The general path of mamba3_scan_backward on a GPU: every shape that any of its kernels takes, in
// fp32.
#pragma once

#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

namespace mamba3 {

std::size_t scan_backward_chunks_workspace_bytes(const Mamba3ScanBackwardArgs& args);
void scan_backward_chunks_cuda(const Mamba3ScanBackwardArgs& args, Context& ctx);

}  // namespace mamba3
