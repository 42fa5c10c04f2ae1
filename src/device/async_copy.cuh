// Hopper's copies from global to shared memory that run by themselves and tell a barrier how many
// bytes have come. Compiled for older cards too, where no path that uses them is taken.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mamba3 {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// One arrival completes a phase, when its bytes are there. Seen by all after
// publish_barriers() and a __syncthreads().
__device__ __forceinline__ void init_barrier(std::uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void expect_bytes(std::uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

__device__ __forceinline__ void wait_barrier(std::uint64_t* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Addresses and size are multiples of 16.
__device__ __forceinline__ void copy_bulk(void* to_shared, const void* from, int bytes,
                                          std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to_shared)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

#else

__device__ __forceinline__ void init_barrier(std::uint64_t*) {
  __trap();
}
__device__ __forceinline__ void publish_barriers() {
  __trap();
}
__device__ __forceinline__ void expect_bytes(std::uint64_t*, int) {
  __trap();
}
__device__ __forceinline__ void wait_barrier(std::uint64_t*, unsigned) {
  __trap();
}
__device__ __forceinline__ void copy_bulk(void*, const void*, int, std::uint64_t*) {
  __trap();
}

#endif

// Of `threads` threads that use the same number, 1 to 15.
__device__ __forceinline__ void sync_threads(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace mamba3
