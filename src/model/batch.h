// What one pass over the layers reads: many tokens of some sequences, or one token of each.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/arena.h"
#include "core/matrix.h"
#include "mamba3/model.h"
#include "ops/linear/linear.h"

namespace mamba3 {

struct Batch {
  bool is_step = false;
  std::int64_t rows = 0;                     // tokens in the pass
  std::span<const std::int64_t> cu_seqlens;  // [q + 1], when not a step
  std::span<const std::int32_t> slots;       // [q], or [rows] of a step
  Compute compute = Compute::kF32;
  bool bf16_activations = false;  // between ops, where they are no residual and no token's numbers

  // One path for each kind of pass, so that a row's bits do not depend on how many rows come with
  // it.
  LinearPath linear_path() const { return is_step ? LinearPath::kSkinny : LinearPath::kGemm; }
};

inline Matrix allocate_matrix(std::int64_t rows, std::int64_t columns, bool bf16,
                              ArenaScope& scope) {
  const std::array<std::int64_t, 2> shape{rows, columns};
  if (bf16) return TensorView<Bf16, 2>(scope.allocate<Bf16>(rows * columns), shape);
  return TensorView<float, 2>(scope.allocate<float>(rows * columns), shape);
}

// [batch.rows, columns] of the type that the batch keeps between ops.
inline Matrix allocate_activations(const Batch& batch, std::int64_t columns, ArenaScope& scope) {
  return allocate_matrix(batch.rows, columns, batch.bf16_activations, scope);
}

}  // namespace mamba3
