#include "ops/cross_entropy/cross_entropy.h"

#include <cmath>

#include "core/check.h"
#include "core/op_timer.h"
#include "ops/cross_entropy/cross_entropy_cpu.h"
#include "ops/cuda_ops.h"

namespace mamba3 {
namespace {

// bf16: where a GPU's tensor cores take or give it.
void check_rows(const char* name, const ConstMatrix& view, std::int64_t rows, std::int64_t columns,
                bool bf16) {
  check_input(view.shape[0] == rows && view.shape[1] == columns, "cross_entropy: ", name, " is ",
              shape_string(view.shape), "; expected [", rows, ", ", columns, "]");
  check_input(view.stride[1] == 1 || columns <= 1, "cross_entropy: the inner stride of ", name,
              " is ", view.stride[1], "; expected 1");
  check_input(view.dtype == DType::kF32 || (bf16 && view.is_bf16()), "cross_entropy: ", name,
              " is ", dtype_name(view.dtype), "; expected F32",
              bf16 ? " or BF16" : "; BF16 is for a GPU and products in bf16");
}

void check(const CrossEntropyArgs& args, const Context& ctx) {
  const TensorRef& w = args.w;
  check_input(w.shape.size() == 2, "cross_entropy: the head has shape ", shape_string(w.shape),
              "; expected two dimensions, [v, d]");
  const auto rows = static_cast<std::int64_t>(args.targets.size());
  const bool bf16 = ctx.gpu() && args.compute == Compute::kBf16;
  check_rows("x", args.x, rows, w.shape[1], bf16);
  if (args.grad_x.data != nullptr) check_rows("grad_x", args.grad_x, rows, w.shape[1], bf16);
  if (args.grad_w.data != nullptr) {
    check_rows("grad_w", args.grad_w, w.shape[0], w.shape[1], false);
  }
  check_input(args.sums != nullptr, "cross_entropy: no place for the sums was given");
  check_input(std::isfinite(args.z_weight) && args.z_weight >= 0, "cross_entropy: z_weight is ",
              args.z_weight, "; expected a finite number of at least 0");
}

void check_targets(const CrossEntropyArgs& args) {
  for (std::size_t i = 0; i < args.targets.size(); ++i) {
    const std::int32_t target = args.targets[i];
    check_input(target == kIgnoredTarget || (target >= 0 && target < args.w.shape[0]),
                "cross_entropy: row ", i, " has the target ", target, "; expected 0 to ",
                args.w.shape[0] - 1, ", or ", kIgnoredTarget, " to ignore it");
  }
}

}  // namespace

std::size_t cross_entropy_workspace_bytes(const CrossEntropyArgs& args, const Context& ctx) {
  check(args, ctx);
  if (ctx.gpu()) return cross_entropy_workspace_bytes_cuda(args, ctx);
  return cross_entropy_workspace_bytes_cpu(args, ctx);
}

void cross_entropy(const CrossEntropyArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "cross_entropy");
  check(args, ctx);
  if (ctx.gpu()) return cross_entropy_cuda(args, ctx);
  check_targets(args);
  cross_entropy_cpu(args, ctx);
}

}  // namespace mamba3
