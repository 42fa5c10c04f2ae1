#include "model/mlp.h"

#include "core/arena.h"
#include "ops/linear/fused_linear.h"

namespace mamba3 {
namespace {

void forward(const NoMlpWeights&, const Batch&, Stream&, Context&) {}

void forward(const SwigluMlpWeights& weights, const Batch& batch, Stream& stream, Context& ctx) {
  const std::int64_t f = weights.fc2.shape[1];
  ArenaScope scope(ctx.workspace());
  FusedLinearArgs up;
  up.w = weights.fc1;
  up.y = allocate_matrix(stream.residual.shape[0], f, batch.bf16_activations, scope);
  up.swiglu = true;
  up.compute = batch.compute;
  up.path = batch.linear_path();
  stream.multiply_normed(up, weights.norm.data(), ctx);
  stream.add_product(up.y, weights.fc2, batch, ctx);
}

void step(const NoMlpWeights&, const Batch&, TensorView<float, 2>, Context&) {}

void step(const SwigluMlpWeights& weights, const Batch& batch, TensorView<float, 2> residual,
          Context& ctx) {
  const std::int64_t f = weights.fc2.shape[1];
  ArenaScope scope(ctx.workspace());
  FusedLinearArgs up;
  up.x = residual;
  up.norm_weight = weights.norm.data();
  up.norm_eps = kModelNormEps;
  up.w = weights.fc1;
  up.swiglu = true;
  up.compute = batch.compute;
  up.path = batch.linear_path();
  // The next product would round it anyway.
  up.y = allocate_matrix(batch.rows, f, ctx.gpu() && batch.compute == Compute::kBf16, scope);
  fused_linear(up, ctx);
  FusedLinearArgs down;
  down.x = up.y;
  down.w = weights.fc2;
  down.y = residual;
  down.accumulate = true;
  down.compute = batch.compute;
  down.path = batch.linear_path();
  fused_linear(down, ctx);
}

}  // namespace

const float* mlp_norm(const MlpWeights& weights) {
  const auto* swiglu = std::get_if<SwigluMlpWeights>(&weights);
  return swiglu == nullptr ? nullptr : swiglu->norm.data();
}

void mlp_forward(const MlpWeights& weights, const Batch& batch, Stream& stream, Context& ctx) {
  std::visit([&](const auto& w) { forward(w, batch, stream, ctx); }, weights);
}

void mlp_step(const MlpWeights& weights, const Batch& batch, TensorView<float, 2> residual,
              Context& ctx) {
  std::visit([&](const auto& w) { step(w, batch, residual, ctx); }, weights);
}

}  // namespace mamba3
