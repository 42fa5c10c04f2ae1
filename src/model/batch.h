// What one pass over the layers reads: many tokens of some sequences, or one token of each.
#pragma once

#include <cstdint>
#include <span>

#include "mamba3/model.h"
#include "ops/linear/linear.h"

namespace mamba3 {

struct Batch {
  bool is_step = false;
  std::int64_t rows = 0;                     // tokens in the pass
  std::span<const std::int64_t> cu_seqlens;  // [q + 1], when not a step
  std::span<const std::int32_t> slots;       // [q], or [rows] of a step
  Compute compute = Compute::kF32;

  // One path for each kind of pass, so that a row's bits do not depend on how many rows come with
  // it.
  LinearPath linear_path() const { return is_step ? LinearPath::kSkinny : LinearPath::kGemm; }
};

}  // namespace mamba3
