#include "model/stream.h"

#include "ops/gather_rows/gather_rows.h"
#include "ops/rms_norm/rms_norm.h"

namespace mamba3 {

void Stream::norm(const float* weight, Context& ctx) {
  rms_norm({residual, added, weight, kModelNormEps, normed}, ctx);
  added = {};
}

void Stream::multiply_normed(FusedLinearArgs args, const float* weight, Context& ctx) {
  args.x = normed;
  args.norm_eps = kModelNormEps;
  if (has_half_norm) args.squares = squares.data;
  if (!has_half_norm || !takes_half_norm(args, ctx)) {
    args.squares = nullptr;
    norm(weight, ctx);
  }
  has_half_norm = false;
  fused_linear(args, ctx);
}

Matrix Stream::keep_rows(const Matrix& x, ArenaScope& scope, Context& ctx) {
  if (!keep) return x;
  const std::int64_t m = keep->residual.shape[0];
  const Matrix kept = allocate_matrix(m, x.shape[1], x.is_bf16(), scope);
  gather_rows({x, keep->rows, kept}, ctx);
  gather_rows({residual, keep->rows, keep->residual}, ctx);
  residual = keep->residual;
  normed = normed.slice(0, m);
  if (output.data != nullptr) output = output.slice(0, m);
  if (squares.data != nullptr) squares = squares.slice(0, m);
  keep.reset();
  return kept;
}

void Stream::add_product(const ConstMatrix& x, const TensorRef& w, const Batch& batch,
                         Context& ctx) {
  const bool onto_residual = output.data == nullptr;
  FusedLinearArgs args;
  args.x = x;
  args.w = w;
  args.y = onto_residual ? residual : output;
  args.accumulate = onto_residual;
  args.compute = batch.compute;
  args.path = batch.linear_path();
  if (onto_residual && next_weight != nullptr) {
    args.half_norm = {next_weight, normed, squares.data};
    has_half_norm = takes_half_norm(args, ctx);
    if (!has_half_norm) args.half_norm = {};
  }
  fused_linear(args, ctx);
  if (!onto_residual) added = output;
}

}  // namespace mamba3
