#include "model/mlp.h"

#include "core/arena.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/swiglu/swiglu.h"

namespace mamba3 {
namespace {

constexpr float kNormEps = 1e-5f;

void forward(const NoMlpWeights&, const Batch&, TensorView<float, 2>, TensorView<float, 2>,
             Context&) {}

void forward(const SwigluMlpWeights& weights, const Batch& batch, TensorView<float, 2> residual,
             TensorView<float, 2> hidden, Context& ctx) {
  const std::int64_t f = weights.fc2.shape[1];
  ArenaScope scope(ctx.workspace());
  const TensorView<float, 2> wide(scope.allocate<float>(batch.rows * 2 * f), {batch.rows, 2 * f});
  const TensorView<float, 2> gated(scope.allocate<float>(batch.rows * f), {batch.rows, f});
  rms_norm({residual, hidden, weights.norm.data(), kNormEps, hidden}, ctx);
  linear({hidden, weights.fc1, wide, batch.compute, batch.linear_path()}, ctx);
  swiglu({wide, gated}, ctx);
  linear({gated, weights.fc2, hidden, batch.compute, batch.linear_path()}, ctx);
}

}  // namespace

void mlp_forward(const MlpWeights& weights, const Batch& batch, TensorView<float, 2> residual,
                 TensorView<float, 2> hidden, Context& ctx) {
  std::visit([&](const auto& w) { forward(w, batch, residual, hidden, ctx); }, weights);
}

}  // namespace mamba3
