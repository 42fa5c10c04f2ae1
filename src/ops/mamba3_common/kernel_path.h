// Which kernels an op takes on a GPU: asked before any work, by those who report it and by the op
// itself.
#pragma once

#include <cstdint>
#include <string>

#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

struct KernelPath {
  bool tuned = false;  // otherwise the general kernels: slower
  // "n = 128, p = 64, r = 4", or the first thing that the tuned ones do not do.
  std::string because;
  bool none = false;  // no kernels: the first thing that the general ones do not do either
  bool mma = false;   // of the general kernels those that multiply on tensor cores
};

// What the general kernels of a GPU hold of a state's row and of a head in registers.
inline constexpr std::int64_t kMostStateCuda = 256;
inline constexpr std::int64_t kMostHeadDimCuda = 256;

// Whether any kernels of a GPU take the layer; because says why not.
KernelPath general_for(const Mamba3Dims& dims);

// kUnavailable where none do: for before anything is loaded.
void check_gpu_takes(const Mamba3Dims& dims);

// What the tuned kernels of mamba3_scan and mamba3_step have in common: n 64 or 128, p 64, r 1, 2
// or 4, on compute capability 9.0 (90).
KernelPath tuned_for(const Mamba3Dims& dims, int compute_capability);

}  // namespace mamba3
