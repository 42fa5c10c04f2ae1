// Which kernels an op takes on a GPU: asked before any work, by those who report it and by the op
// itself.
#pragma once

#include <string>

#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

struct KernelPath {
  bool tuned = false;  // otherwise the general kernels: every shape, slower
  std::string
      because;  // "n = 128, p = 64, r = 4", or the first thing that the tuned ones do not do
};

// What the tuned kernels of mamba3_scan and mamba3_step have in common: n 64 or 128, p 64, r 1, 2
// or 4, on compute capability 9.0 (90).
KernelPath tuned_for(const Mamba3Dims& dims, int compute_capability);

}  // namespace mamba3
