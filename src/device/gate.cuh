// A gate between two blocks of a kernel: what one has written, another reads behind it. The block
// that opens it must have started when the other one begins to wait, or that one might keep it from
// starting: CUDA promises no order of blocks, so they take their work by turns (an atomic count).
#pragma once

namespace mamba3 {

// By one thread; what others of its block have written before a barrier goes with it.
__device__ __forceinline__ void open_gate(int* gate) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(gate)), "r"(1)
               : "memory");
}

// By one thread; others of its block read behind a barrier.
__device__ __forceinline__ void wait_for_gate(const int* gate) {
  int open = 0;
  while (open == 0) {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                 : "=r"(open)
                 : "l"(__cvta_generic_to_global(gate))
                 : "memory");
  }
}

}  // namespace mamba3
