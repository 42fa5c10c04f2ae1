#include "model/stream.h"

#include "ops/rms_norm/rms_norm.h"

namespace mamba3 {

void Stream::norm(const float* weight, Context& ctx) {
  rms_norm({residual, added, weight, kModelNormEps, normed}, ctx);
  added = {};
}

void Stream::add_product(const ConstMatrix& x, const TensorRef& w, const Batch& batch,
                         Context& ctx) {
  const bool onto_residual = output.data == nullptr;
  LinearArgs args{x, w, onto_residual ? residual : output, batch.compute, batch.linear_path()};
  args.accumulate = onto_residual;
  linear(args, ctx);
  if (!onto_residual) added = output;
}

}  // namespace mamba3
