// The channel-mixing half of a block, [rows, d] -> [rows, d].
#pragma once

#include "mamba3/context.h"
#include "model/batch.h"
#include "model/weights.h"

namespace mamba3 {

// residual += hidden, norm, fc1, SwiGLU, fc2; the result goes to `hidden`. Without an MLP both stay
// as they are.
void mlp_forward(const MlpWeights& weights, const Batch& batch, TensorView<float, 2> residual,
                 TensorView<float, 2> hidden, Context& ctx);

// A step: residual += the MLP of its norm.
void mlp_step(const MlpWeights& weights, const Batch& batch, TensorView<float, 2> residual,
              Context& ctx);

}  // namespace mamba3
