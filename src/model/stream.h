// What runs through the layers of a model: the residual stream, and what the next block reads.
#pragma once

#include "core/matrix.h"
#include "mamba3/context.h"
#include "model/batch.h"

namespace mamba3 {

constexpr float kModelNormEps = 1e-5f;  // of every norm over d

struct Stream {
  // [rows, d] each. With fp32 activations one memory serves as `normed` and `output`: a block reads
  // the former and leaves its output there, which waits in `added` for the next norm. With bf16 the
  // last product of a block adds onto the residual itself, and there is no `output`.
  TensorView<float, 2> residual;
  Matrix normed;
  TensorView<float, 2> output;
  TensorView<float, 2> added;  // no data: nothing waits

  // normed = norm(residual + what was added), weight [d].
  void norm(const float* weight, Context& ctx);
  // The end of a block: x w^T, [rows, d], joins the stream.
  void add_product(const ConstMatrix& x, const TensorRef& w, const Batch& batch, Context& ctx);
};

}  // namespace mamba3
