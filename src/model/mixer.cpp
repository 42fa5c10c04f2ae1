#include "model/mixer.h"

#include "core/arena.h"
#include "ops/linear/fused_linear.h"
#include "ops/mamba3_common/kernel_path.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3 {
namespace {

// in_proj's output: all in fp32, or z and x in bf16 and the rest, whose digits count for more, in
// fp32.
Mamba3Columns project(const Mamba3MixerWeights& weights, const ModelConfig& config,
                      const Batch& batch, const Mamba3Dims& dims, const float* norm, Stream& stream,
                      ArenaScope& scope, Context& ctx) {
  const std::int64_t e = config.in_proj_rows(), inner = config.inner();
  const std::int64_t split = batch.bf16_activations ? 2 * inner : 0;
  const std::int64_t rest = e - split;
  const TensorView<float, 2> projected(scope.allocate<float>(batch.rows * rest),
                                       {batch.rows, rest});
  FusedLinearArgs in;
  in.w = weights.in_proj;
  in.y = projected;
  in.compute = batch.compute;
  in.path = batch.linear_path();
  if (split == 0) {
    stream.multiply_normed(in, norm, ctx);
    return split_columns(projected.data, rest, dims);
  }
  auto* zx = scope.allocate<Bf16>(batch.rows * split);
  in.y = TensorView<Bf16, 2>(zx, {batch.rows, split});
  in.rest = projected;
  stream.multiply_normed(in, norm, ctx);
  Mamba3Columns columns = split_columns(projected.data, rest, dims, true);
  columns.z_bf16 = zx;
  columns.x_bf16 = zx + inner;
  columns.zx_stride = split;
  return columns;
}

void forward(const Mamba3MixerWeights& weights, Values norm, const ModelConfig& config,
             const Batch& batch, const Mamba3States& states, Stream& stream, Context& ctx) {
  const Mamba3Dims dims = mixer_dims(config);
  ArenaScope scope(ctx.workspace());
  const Matrix y = allocate_activations(batch, config.inner(), scope);
  const Mamba3Columns columns =
      project(weights, config, batch, dims, norm.data(), stream, scope, ctx);
  const bool bf16_products = batch.compute == Compute::kBf16;
  mamba3_scan({dims, mixer_params(weights), columns, batch.cu_seqlens, batch.slots, states, y,
               bf16_products, ctx.same_bits()},
              ctx);
  const Matrix kept = stream.keep_rows(y, scope, ctx);
  stream.add_product(kept, weights.out_proj, batch, ctx);
}

void step(const Mamba3MixerWeights& weights, Values norm, const ModelConfig& config,
          const Batch& batch, TensorView<float, 2> residual, const Mamba3States& states,
          Context& ctx) {
  const std::int64_t e = config.in_proj_rows();
  ArenaScope scope(ctx.workspace());
  const TensorView<float, 2> projected(scope.allocate<float>(batch.rows * e), {batch.rows, e});
  // The next product would round it anyway.
  const bool rounded = batch.compute == Compute::kBf16 && states.ring.tokens > 0;
  const Matrix y = allocate_matrix(batch.rows, config.inner(), rounded, scope);
  FusedLinearArgs in;
  in.x = residual;
  in.norm_weight = norm.data();
  in.w = weights.in_proj;
  in.y = projected;
  in.compute = batch.compute;
  in.path = batch.linear_path();
  fused_linear(in, ctx);
  const Mamba3Dims dims = mixer_dims(config);
  // Between the states and this step lies in_proj.
  mamba3_step({dims, mixer_params(weights), split_columns(projected.data, e, dims), batch.slots,
               states, y, true},
              ctx);
  FusedLinearArgs out;
  out.x = y;
  out.w = weights.out_proj;
  out.y = residual;
  out.accumulate = true;
  out.compute = batch.compute;
  out.path = batch.linear_path();
  fused_linear(out, ctx);
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
  dims.fixed_steps = mixer.rope == Rope::kStandard;
  dims.mimo = mixer.mimo;
  dims.out_norm = mixer.out_norm;
  dims.a_floor = static_cast<float>(mixer.a_floor);
  dims.a_activation = mixer.a_activation;
  return dims;
}

void check_layers(const ModelConfig& config, const Context& ctx) {
  const Mamba3Dims dims = mixer_dims(config);
  check_dims(dims);
  if (ctx.gpu()) check_gpu_takes(dims);
}

bool takes_bf16_activations(const ModelConfig& config, const Context& ctx) {
  constexpr std::int64_t kPiece = 8;
  return config.width % kPiece == 0 && config.mlp_hidden % kPiece == 0 &&
         mamba3_scan_takes_bf16(mixer_dims(config), ctx);
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

void mixer_forward(const MixerWeights& weights, Values norm, const ModelConfig& config,
                   const Batch& batch, const Mamba3States& states, Stream& stream, Context& ctx) {
  std::visit([&](const auto& w) { forward(w, norm, config, batch, states, stream, ctx); }, weights);
}

void mixer_step(const MixerWeights& weights, Values norm, const ModelConfig& config,
                const Batch& batch, TensorView<float, 2> residual, const Mamba3States& states,
                Context& ctx) {
  std::visit([&](const auto& w) { step(w, norm, config, batch, residual, states, ctx); }, weights);
}

}  // namespace mamba3
