// What runs through the layers of a model: the residual stream, and what the next block reads.
#pragma once

#include <optional>
#include <span>

#include "core/arena.h"
#include "core/matrix.h"
#include "mamba3/context.h"
#include "model/batch.h"
#include "ops/linear/fused_linear.h"

namespace mamba3 {

constexpr float kModelNormEps = 1e-5f;  // of every norm over d

struct Stream {
  // [rows, d] each. With fp32 activations one memory serves as `normed` and `output`: a block reads
  // the former and leaves its output there, which waits in `added` for the next norm. With bf16 the
  // last product of a block adds onto the residual itself, and there is no `output`; where a kernel
  // can, it makes the first half of the next norm as well, in `normed` and `squares`.
  TensorView<float, 2> residual;
  Matrix normed;
  TensorView<float, 2> output;
  TensorView<float, 2> added;          // no data: nothing waits
  TensorView<float, 2> squares;        // [rows, d / kNormPart], with bf16
  const float* next_weight = nullptr;  // [d], of the norm behind the block; null: no block's
  bool has_half_norm = false;          // of the residual as it is
  // Rows that are wanted behind the last scan, which is the last to need the others, and memory for
  // their residual. None: all rows are wanted.
  struct Keep {
    std::span<const std::int64_t> rows;  // [m]
    TensorView<float, 2> residual;       // [m, d]
  };
  std::optional<Keep> keep;

  // normed = norm(residual + what was added), weight [d].
  void norm(const float* weight, Context& ctx);
  // The first product of a block, of the norm of weight [d]. `args` say all but x and the norm.
  void multiply_normed(FusedLinearArgs args, const float* weight, Context& ctx);
  // The rows to keep of x, which a block has made of them all; from here on the stream has no
  // others.
  Matrix keep_rows(const Matrix& x, ArenaScope& scope, Context& ctx);
  // The end of a block: x w^T, [rows, d], joins the stream.
  void add_product(const ConstMatrix& x, const TensorRef& w, const Batch& batch, Context& ctx);
};

}  // namespace mamba3
