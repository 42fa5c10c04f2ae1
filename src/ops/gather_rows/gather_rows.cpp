#include "ops/gather_rows/gather_rows.h"

#include <algorithm>

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cuda_ops.h"

namespace mamba3 {

void gather_rows(const GatherRowsArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "gather_rows");
  const auto count = static_cast<std::int64_t>(args.rows.size());
  check_input(args.y.shape[0] == count && args.y.shape[1] == args.x.shape[1], "gather_rows: y is ",
              shape_string(args.y.shape), "; expected ", count, " rows of ", args.x.shape[1]);
  check_input(args.y.dtype == args.x.dtype, "gather_rows: y is ", dtype_name(args.y.dtype),
              "; expected ", dtype_name(args.x.dtype), " as x");
  if (ctx.gpu()) return gather_rows_cuda(args, ctx);
  for (std::int64_t i = 0; i < count; ++i) {
    check_input(args.rows[i] >= 0 && args.rows[i] < args.x.shape[0], "gather_rows: row ",
                args.rows[i], " is asked for; expected 0 to ", args.x.shape[0] - 1);
    std::copy_n(args.x.row(args.rows[i]), args.x.shape[1], args.y.row(i));
  }
}

}  // namespace mamba3
