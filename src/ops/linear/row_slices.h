// Products of many rows on a GPU that must keep the bits of few.
#pragma once

#include <algorithm>

#include "ops/linear/linear.h"

namespace mamba3 {

// As many rows as our own kernels for few take, in one order of sums whatever their number.
constexpr std::int64_t kMostSkinnyRows = 16;

// With ContextOptions::same_bits, calls `op` for sixteen rows after the other where all at once
// would be added in another order. False: nothing was done, and nothing needs to be cut.
template <class Args>
bool done_in_slices(const Args& args, Context& ctx, void (*op)(const Args&, Context&)) {
  const std::int64_t rows = args.x.shape[0];
  const bool promised = args.path == LinearPath::kSkinny && ctx.same_bits();
  if (!ctx.gpu() || !promised || rows <= kMostSkinnyRows) return false;
  for (std::int64_t row = 0; row < rows; row += kMostSkinnyRows) {
    const std::int64_t end = std::min(rows, row + kMostSkinnyRows);
    Args slice = args;
    slice.x = args.x.slice(row, end);
    slice.y = args.y.slice(row, end);
    if constexpr (requires { slice.rest; }) {
      if (args.rest.data != nullptr) slice.rest = args.rest.slice(row, end);
    }
    op(slice, ctx);
  }
  return true;
}

}  // namespace mamba3
