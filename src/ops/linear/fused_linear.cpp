#include "ops/linear/fused_linear.h"

#include "core/arena.h"
#include "core/check.h"
#include "core/op_timer.h"
#include "core/thread_pool.h"
#include "ops/cuda_ops.h"
#include "ops/linear/row_slices.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/swiglu/swiglu.h"

namespace mamba3 {
namespace {

void check(const FusedLinearArgs& args) {
  const std::int64_t outs = (args.swiglu ? 2 : 1) * args.y.shape[1] + args.rest.shape[1];
  check_input(args.w.shape.size() == 2 && args.w.shape[0] == outs &&
                  args.w.shape[1] == args.x.shape[1] && args.x.shape[0] == args.y.shape[0],
              "fused_linear: x is ", shape_string(args.x.shape), ", the weights ",
              shape_string(args.w.shape), ", y ", shape_string(args.y.shape),
              "; expected [rows, k], [n, k] or with swiglu [2 n, k], [rows, n]");
  check_input(args.norm_weight == nullptr || !args.x.is_bf16(),
              "fused_linear: x is bf16 and goes through a norm; expected fp32");
  check_input(!args.accumulate || (!args.swiglu && !args.y.is_bf16()),
              "fused_linear: a sum onto y with swiglu or in bf16; expected neither");
  check_input(
      args.rest.data == nullptr || (!args.swiglu && !args.accumulate && !args.rest.is_bf16() &&
                                    args.rest.shape[0] == args.y.shape[0]),
      "fused_linear: more outputs behind y, which is ", shape_string(args.y.shape), ", are ",
      shape_string(args.rest.shape),
      "; expected fp32 of as many rows, and neither swiglu nor a sum");
  check_input(
      args.half_norm.weight == nullptr ||
          (args.accumulate && args.half_norm.scaled.is_bf16() &&
           args.half_norm.scaled.shape == args.y.shape && args.half_norm.squares != nullptr),
      "fused_linear: half a norm of y, which is ", shape_string(args.y.shape), ", goes to ",
      shape_string(args.half_norm.scaled.shape),
      "; expected bf16 of the same shape, squares, and a sum onto y");
  check_input(args.squares == nullptr || (args.x.is_bf16() && args.norm_weight == nullptr),
              "fused_linear: squares of an x that is fp32 or goes through a whole norm; expected"
              " the bf16 of half a norm");
}

bool asks_half_norm(const FusedLinearArgs& args) {
  return args.half_norm.weight != nullptr || args.squares != nullptr;
}

// Numbers between two ops.
Matrix scratch(std::int64_t rows, std::int64_t columns, bool bf16, ArenaScope& scope) {
  if (bf16) return TensorView<Bf16, 2>(scope.allocate<Bf16>(rows * columns), {rows, columns});
  return TensorView<float, 2>(scope.allocate<float>(rows * columns), {rows, columns});
}

// Whether the product behind a norm reads bf16 as fast as fp32, so that the norm does the rounding.
bool takes_bf16(const FusedLinearArgs& args, const Context& ctx) {
  if (!ctx.gpu() || args.compute != Compute::kBf16) return false;
  if (args.x.shape[0] > kMostSkinnyRows) return true;
  FusedLinearArgs rounded = args;
  rounded.norm_weight = nullptr;
  rounded.x.dtype = DType::kBf16;
  rounded.x.data = nullptr;
  rounded.x.stride = {args.x.shape[1], 1};
  return fused_linear_takes_cuda(rounded, ctx);
}

void norm_first(const FusedLinearArgs& args, Context& ctx) {
  const std::int64_t rows = args.x.shape[0], k = args.x.shape[1];
  ArenaScope scope(ctx.workspace());
  RmsNormArgs norm;
  // Only read, since nothing is added to it.
  norm.residual = {const_cast<float*>(args.x.floats()), args.x.shape, args.x.stride};
  norm.weight = args.norm_weight;
  norm.eps = args.norm_eps;
  norm.y = scratch(rows, k, takes_bf16(args, ctx), scope);
  rms_norm(norm, ctx);
  FusedLinearArgs rest = args;
  rest.x = norm.y;
  rest.norm_weight = nullptr;
  fused_linear(rest, ctx);
}

// y += added, on a CPU.
void add_rows(const Matrix& added, const Matrix& y, Context& ctx) {
  const std::int64_t n = y.shape[1];
  ctx.pool().run(y.shape[0], [&](std::int64_t row, int) {
    float* to = y.row(row);
    const float* from = added.row(row);
    for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
  });
}

// The outputs of rest, then those of y.
void one_then_the_other(FusedLinearArgs args, Context& ctx) {
  const std::int64_t outs = args.y.shape[1], m = args.rest.shape[1], k = args.x.shape[1];
  const std::byte* w = args.w.data + outs * k * dtype_bytes(args.w.dtype);
  linear({args.x, {w, args.w.dtype, {m, k}}, args.rest, args.compute, args.path}, ctx);
  args.w.shape = {outs, k};
  args.rest = {};
  fused_linear(args, ctx);
}

void op_by_op(const FusedLinearArgs& args, Context& ctx) {
  ArenaScope scope(ctx.workspace());
  const bool added_later = args.accumulate && !ctx.gpu();
  Matrix y = args.y;
  if (args.swiglu || added_later) y = scratch(y.shape[0], args.w.shape[0], false, scope);
  linear({args.x, args.w, y, args.compute, args.path, args.accumulate && !added_later}, ctx);
  if (args.swiglu) swiglu({y, args.y}, ctx);
  if (added_later) add_rows(y, args.y, ctx);
}

}  // namespace

bool takes_half_norm(const FusedLinearArgs& args, const Context& ctx) {
  check(args);
  return ctx.gpu() && args.path == LinearPath::kGemm && fused_linear_takes_cuda(args, ctx);
}

void fused_linear(const FusedLinearArgs& args, Context& ctx) {
  check(args);
  if (asks_half_norm(args) && !takes_half_norm(args, ctx)) {
    fail(ErrorCode::kUnavailable,
         "fused_linear: half a norm where no kernel makes it; expected a call that"
         " takes_half_norm was asked about");
  }
  if (args.y.elements() == 0 || done_in_slices(args, ctx, fused_linear)) return;
  if (ctx.gpu() && fused_linear_takes_cuda(args, ctx)) {
    const OpTimer timer(ctx, "linear");
    return fused_linear_cuda(args, ctx);
  }
  if (args.norm_weight != nullptr) return norm_first(args, ctx);
  if (args.rest.data != nullptr) return one_then_the_other(args, ctx);
  op_by_op(args, ctx);
}

}  // namespace mamba3
