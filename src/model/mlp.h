// The channel-mixing half of a block.
#pragma once

#include "mamba3/context.h"
#include "model/batch.h"
#include "model/stream.h"
#include "model/weights.h"

namespace mamba3 {

// The weight [d] of its norm; null where there is no MLP.
const float* mlp_norm(const MlpWeights& weights);

// norm, fc1, SwiGLU, fc2; the result joins the stream. Without an MLP it stays as it is.
void mlp_forward(const MlpWeights& weights, const Batch& batch, Stream& stream, Context& ctx);

// A step: residual += the MLP of its norm.
void mlp_step(const MlpWeights& weights, const Batch& batch, TensorView<float, 2> residual,
              Context& ctx);

}  // namespace mamba3
