// Hopper's copies from global to shared memory that run by themselves, and the barriers in shared
// memory on which one waits for them. Code for older cards may name these; it never runs them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "device/shared_memory.cuh"

namespace mamba3 {

using Barrier = std::uint64_t;

__device__ __forceinline__ void barrier_init(Barrier* barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// After barrier_init and before a __syncthreads: copies see the barriers too.
__device__ __forceinline__ void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Its memory may then be used otherwise.
__device__ __forceinline__ void barrier_close(Barrier* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// How often a warp arrives at a barrier. Once, by a lane for all: what the others did comes before
// it by __syncwarp. The tool racecheck follows an arrival to its own lane only, so in a build for
// it (MAMBA3_RACECHECK) every lane arrives.
#ifdef MAMBA3_RACECHECK
constexpr unsigned kWarpArrivals = 32;
#else
constexpr unsigned kWarpArrivals = 1;
#endif

// All that this warp has written and read comes before what others do after the barrier, which
// counts kWarpArrivals for it.
__device__ __forceinline__ void arrive_warp(Barrier* barrier, unsigned lane) {
  __syncwarp();
  if (lane < kWarpArrivals) barrier_arrive(barrier);
}

// Arrives, and keeps the phase open until copies have brought so many bytes.
__device__ __forceinline__ void barrier_arrive_expecting(Barrier* barrier, std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Returns when the phase of that parity is over.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Brings `bytes` bytes, a multiple of 16, near: into the L2 cache. A hint; older cards leave it
// out.
__device__ __forceinline__ void prefetch_l2(const void* from, int bytes) {
#if __CUDA_ARCH__ >= 900
  const auto address = reinterpret_cast<std::uint64_t>(from) / 16 * 16;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes));
#endif
}

// True in one lane of a warp whose lanes are all here. The compiler knows that it is one, which
// keeps what only that lane starts free of loops over lanes.
__device__ __forceinline__ bool elect_lane() {
  std::uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred one;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, one;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

// Addresses and size are multiples of 16.
__device__ __forceinline__ void bulk_copy(void* to_shared, const void* from, std::uint32_t bytes,
                                          Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to_shared)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// Data that is read once should not drive other data out of the L2 cache.
__device__ __forceinline__ std::uint64_t read_once_policy() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The same with such a policy.
__device__ __forceinline__ void bulk_copy(void* to_shared, const void* from, std::uint32_t bytes,
                                          Barrier* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to_shared)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

}  // namespace mamba3
