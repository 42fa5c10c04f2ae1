// Blocks of one cluster, which see each other's shared memory. Code for GPUs before 9.0 has no
// clusters: a kernel is launched as single blocks there, each a cluster by itself.
#pragma once

#include "device/bulk_copy.cuh"

namespace mamba3 {

__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

__device__ __forceinline__ unsigned cluster_blocks() {
#if __CUDA_ARCH__ >= 900
  unsigned count;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
  return count;
#else
  return 1;
#endif
}

// All threads of all blocks arrive; what was written before is seen after the wait.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// The same where nothing that was written is read behind the wait, which saves a fence.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

__device__ __forceinline__ void cluster_sync_relaxed() {
  cluster_arrive_relaxed();
  cluster_wait();
}

// The variable in shared memory of block `rank` that stands where `mine` stands in this block's.
template <class T>
__device__ __forceinline__ T* cluster_peer(T* mine, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  T* theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
  return theirs;
#else
  return mine;
#endif
}

// The address in block `rank` of what stands at `address` here.
__device__ __forceinline__ std::uint32_t cluster_address(std::uint32_t address, unsigned rank) {
  std::uint32_t theirs;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"(address), "r"(rank));
  return theirs;
}

// Arrives at the barrier that stands in block `rank` where `barrier` stands here: what this thread
// has read, tensor cores for it too, may be overwritten. It publishes nothing to other blocks.
__device__ __forceinline__ void barrier_arrive_at(Barrier* barrier, unsigned rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(
                   cluster_address(shared_address(barrier), rank))
               : "memory");
}

// Writes to another block, whose barrier counts the bytes: addresses from cluster_address.
__device__ __forceinline__ void store_async(std::uint32_t to, float4 v, std::uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
}

}  // namespace mamba3
