// The sequence-mixing half of a block.
#pragma once

#include "mamba3/context.h"
#include "model/batch.h"
#include "model/stream.h"
#include "model/weights.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

Mamba3Dims mixer_dims(const ModelConfig& config);
// Whether the Context's device computes such layers: kUnavailable, with the reason, where it does
// not. Asked before anything is loaded.
void check_layers(const ModelConfig& config, const Context& ctx);
// Whether what passes between ops may be bf16: where the scan takes that, and rows begin on 16
// bytes, since products of others are slower than rounding their inputs first.
bool takes_bf16_activations(const ModelConfig& config, const Context& ctx);
Mamba3Params mixer_params(const Mamba3MixerWeights& weights);

// The norm of the stream, in_proj, the recurrence from and to `states`, out_proj; the result joins
// the stream.
void mixer_forward(const MixerWeights& weights, Values norm, const ModelConfig& config,
                   const Batch& batch, const Mamba3States& states, Stream& stream, Context& ctx);

// A step, with the norm before and the sum behind it: residual += the mixer of norm(residual).
void mixer_step(const MixerWeights& weights, Values norm, const ModelConfig& config,
                const Batch& batch, TensorView<float, 2> residual, const Mamba3States& states,
                Context& ctx);

}  // namespace mamba3
