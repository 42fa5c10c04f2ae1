// The backward pass of the scan in chunks on tensor cores: mma.sync and wgmma with bf16 factors
// and fp32 sums, with the memory of a Hopper multiprocessor.
#pragma once

#include "mamba3/context.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

namespace mamba3 {

// Whether it takes the call on a GPU of this compute capability (90 for 9.0): bf16_products, z, x
// and grad_y in bf16 with rows that begin on 16 bytes, and a layer that has tuned kernels for the
// scan (see mamba3_scan_path) with a multiple of four angles and no out-norm.
bool mamba3_scan_backward_takes_mma(const Mamba3ScanBackwardArgs& args, int compute_capability);

// Workspace taken from ctx.workspace() during the call.
std::size_t mamba3_scan_backward_mma_workspace_bytes(const Mamba3ScanBackwardArgs& args);

void mamba3_scan_backward_mma_cuda(const Mamba3ScanBackwardArgs& args, Context& ctx);

}  // namespace mamba3
