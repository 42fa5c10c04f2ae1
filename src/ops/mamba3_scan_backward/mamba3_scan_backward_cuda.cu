#include "ops/cuda_ops.h"
#include "ops/mamba3_scan_backward/scan_backward_chunks_cuda.h"
#include "ops/mamba3_scan_backward/scan_backward_mma_cuda.h"

namespace mamba3 {
namespace {

bool takes_mma(const Mamba3ScanBackwardArgs& args, const Context& ctx) {
  return mamba3_scan_backward_takes_mma(args, ctx.gpu()->info().compute_capability);
}

}  // namespace

std::size_t mamba3_scan_backward_workspace_bytes_cuda(const Mamba3ScanBackwardArgs& args,
                                                      const Context& ctx) {
  if (args.grad_y.shape[0] == 0) return 0;
  return takes_mma(args, ctx) ? mamba3_scan_backward_mma_workspace_bytes(args)
                              : scan_backward_chunks_workspace_bytes(args);
}

void mamba3_scan_backward_cuda(const Mamba3ScanBackwardArgs& args, Context& ctx) {
  if (args.grad_y.shape[0] == 0) return;
  if (takes_mma(args, ctx)) return mamba3_scan_backward_mma_cuda(args, ctx);
  scan_backward_chunks_cuda(args, ctx);
}

}  // namespace mamba3
