#include <cstdint>

#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan_backward/scan_backward_mma_cuda.h"

namespace mamba3 {
bool mamba3_scan_backward_takes_mma(const Mamba3ScanBackwardArgs& args, int compute_capability) {
  const Mamba3Dims& dims = args.dims;
  const Mamba3Columns& columns = args.columns;
  const bool shape = mamba3_scan_path(dims, compute_capability, args.bf16_products).tuned &&
                     dims.mimo == (dims.rank > 1) && dims.angles % 4 == 0 && !dims.out_norm;
  const bool pieces = args.grad_y.is_bf16() && columns.z_bf16 != nullptr &&
                      columns.x_bf16 != nullptr &&
                      begins_on_pieces(args.grad_y.data, 2 * args.grad_y.stride[0]) &&
                      begins_on_pieces(columns.z_bf16, 2 * columns.zx_stride) &&
                      begins_on_pieces(columns.x_bf16, 2 * columns.zx_stride);
  const Mamba3ColumnGradients& grads = args.grad_columns;
  const bool pairs =
      grads.rows_bf16 == nullptr ||
      (reinterpret_cast<std::uintptr_t>(grads.rows_bf16) % 4 == 0 && grads.row_stride % 2 == 0);
  return shape && pieces && pairs;
}

}  // namespace mamba3
