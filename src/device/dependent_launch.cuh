// What a kernel started by launch_dependent (ops/launch.cuh) does about the kernel before it in the
// stream. On cards before Hopper, where kernels do not overlap, both do nothing.
#pragma once

namespace mamba3 {

// Everything before this kernel in the stream is complete, and what it wrote can be read. Every
// such kernel calls it, in all threads, before it reads what others wrote and before it writes
// anything: the kernel after it relies on that. Loads of what others write are plain ones behind
// it, neither __ldg nor through const __restrict__, which a compiler may move ahead of it.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel after this one may start as soon as all blocks have come here or ended: to fetch what
// nobody writes and to wait. What this kernel writes after the call is safe as well.
__device__ __forceinline__ void start_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace mamba3
