#include "ops/cuda_ops.h"
#include "ops/mamba3_scan_backward/scan_backward_chunks_cuda.h"

namespace mamba3 {

std::size_t mamba3_scan_backward_workspace_bytes_cuda(const Mamba3ScanBackwardArgs& args,
                                                      const Context&) {
  if (args.grad_y.shape[0] == 0) return 0;
  return scan_backward_chunks_workspace_bytes(args);
}

void mamba3_scan_backward_cuda(const Mamba3ScanBackwardArgs& args, Context& ctx) {
  if (args.grad_y.shape[0] == 0) return;
  scan_backward_chunks_cuda(args, ctx);
}

}  // namespace mamba3
