// Where one is in a ring of stages in shared memory that is gone through again and again.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mamba3 {

template <int kStages>
struct RingPosition {
  int stage = 0;
  std::uint32_t parity = 0;  // of the phase in which the stage's barrier says that it is full

  __device__ __forceinline__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
  __device__ __forceinline__ void advance(int stages) {
    stage += stages;
    parity ^= stage / kStages % 2;
    stage %= kStages;
  }
};

}  // namespace mamba3
