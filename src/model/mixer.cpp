#include "model/mixer.h"

#include "core/arena.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3 {
namespace {

void recurrence(const Mamba3MixerWeights& weights, const Mamba3Dims& dims, const Batch& batch,
                TensorView<const float, 2> projected, const Mamba3States& states,
                TensorView<float, 2> y, Context& ctx) {
  const Mamba3Columns columns = split_columns(projected.data, projected.stride[0], dims);
  if (batch.is_step) {
    // Between the states and this step lies in_proj.
    mamba3_step({dims, mixer_params(weights), columns, batch.slots, states, y, true}, ctx);
  } else {
    const bool bf16_products = batch.compute == Compute::kBf16;
    mamba3_scan({dims, mixer_params(weights), columns, batch.cu_seqlens, batch.slots, states, y,
                 bf16_products},
                ctx);
  }
}

void forward(const Mamba3MixerWeights& weights, const ModelConfig& config, const Batch& batch,
             TensorView<const float, 2> x, const Mamba3States& states, TensorView<float, 2> out,
             Context& ctx) {
  const Mamba3Dims dims = mixer_dims(config);
  const std::int64_t e = config.in_proj_rows();
  ArenaScope scope(ctx.workspace());
  const TensorView<float, 2> projected(scope.allocate<float>(batch.rows * e), {batch.rows, e});
  const TensorView<float, 2> y(scope.allocate<float>(batch.rows * config.inner()),
                               {batch.rows, config.inner()});
  linear({x, weights.in_proj, projected, batch.compute, batch.linear_path()}, ctx);
  recurrence(weights, dims, batch, projected, states, y, ctx);
  linear({y, weights.out_proj, out, batch.compute, batch.linear_path()}, ctx);
}

}  // namespace

Mamba3Dims mixer_dims(const ModelConfig& config) {
  const Mamba3Config& mixer = config.mixer;
  Mamba3Dims dims;
  dims.heads = config.heads();
  dims.head_dim = mixer.head_dim;
  dims.state = mixer.state;
  dims.groups = mixer.groups;
  dims.rank = mixer.rank;
  dims.angles = mixer.angles();
  dims.mimo = mixer.mimo;
  dims.out_norm = mixer.out_norm;
  dims.a_floor = static_cast<float>(mixer.a_floor);
  dims.a_activation = mixer.a_activation;
  return dims;
}

Mamba3Params mixer_params(const Mamba3MixerWeights& w) {
  Mamba3Params out;
  out.dt_bias = w.dt_bias.data();
  out.skip = w.skip.data();
  out.in_b_bias = w.in_b_bias.data();
  out.out_c_bias = w.out_c_bias.data();
  out.in_b_norm = w.in_b_norm.data();
  out.out_c_norm = w.out_c_norm.data();
  out.mimo_x = w.mimo_x.data();
  out.mimo_z = w.mimo_z.data();
  out.mimo_o = w.mimo_o.data();
  out.out_norm = w.out_norm.data();
  return out;
}

void mixer_forward(const MixerWeights& weights, const ModelConfig& config, const Batch& batch,
                   TensorView<const float, 2> x, const Mamba3States& states,
                   TensorView<float, 2> out, Context& ctx) {
  std::visit([&](const auto& w) { forward(w, config, batch, x, states, out, ctx); }, weights);
}

}  // namespace mamba3
