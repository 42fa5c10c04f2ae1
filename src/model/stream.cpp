#include "model/stream.h"

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
