#include "model/mlp.h"

#include "core/arena.h"
#include "ops/swiglu/swiglu.h"

namespace mamba3 {
namespace {

void forward(const NoMlpWeights&, const Batch&, Stream&, Context&) {}

void forward(const SwigluMlpWeights& weights, const Batch& batch, Stream& stream, Context& ctx) {
  const std::int64_t f = weights.fc2.shape[1];
  ArenaScope scope(ctx.workspace());
  const Matrix wide = allocate_activations(batch, 2 * f, scope);
  const Matrix gated = allocate_activations(batch, f, scope);
  stream.norm(weights.norm.data(), ctx);
  linear({stream.normed, weights.fc1, wide, batch.compute, batch.linear_path()}, ctx);
  swiglu({wide, gated}, ctx);
  stream.add_product(gated, weights.fc2, batch, ctx);
}

}  // namespace

void mlp_forward(const MlpWeights& weights, const Batch& batch, Stream& stream, Context& ctx) {
  std::visit([&](const auto& w) { forward(w, batch, stream, ctx); }, weights);
}

}  // namespace mamba3
