// The sequence-mixing half of a block, [rows, d] -> [rows, d].
#pragma once

#include "mamba3/context.h"
#include "model/batch.h"
#include "model/weights.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

Mamba3Dims mixer_dims(const ModelConfig& config);
Mamba3Params mixer_params(const Mamba3MixerWeights& weights);

// in_proj, the recurrence from and to `states`, out_proj. `out` may be the memory of `x`.
void mixer_forward(const MixerWeights& weights, const ModelConfig& config, const Batch& batch,
                   TensorView<const float, 2> x, const Mamba3States& states,
                   TensorView<float, 2> out, Context& ctx);

// A step, with the norm before and the sum behind it: residual += the mixer of norm(residual).
void mixer_step(const MixerWeights& weights, Values norm, const ModelConfig& config,
                const Batch& batch, TensorView<float, 2> residual, const Mamba3States& states,
                Context& ctx);

}  // namespace mamba3
