// What a matrix looks like to Hopper's copies of boxes (device/tensor_copy.cuh).
#pragma once

#include <cuda.h>

#include "core/matrix.h"

namespace mamba3 {

// Whether a tensor map can describe it: rows begin on 16 bytes.
bool tensor_map_takes(const ConstMatrix& matrix);

// Boxes have `box_rows` rows of 128 bytes, which lie in shared memory with the 128-byte swizzle
// (device/wgmma.cuh). Host work only, of under a microsecond; the map goes to a kernel as a
// __grid_constant__ parameter.
CUtensorMap tensor_map(const ConstMatrix& matrix, int box_rows);

}  // namespace mamba3
