// Shared memory by address: where places follow from each other by an offset that the compiler
// knows or by flipping bits, which pointers cannot say.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mamba3 {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

template <int kOffset = 0>
__device__ __forceinline__ std::uint32_t load_shared(std::uint32_t address) {
  std::uint32_t bits;
  asm volatile("ld.shared.u32 %0, [%1 + %2];" : "=r"(bits) : "r"(address), "n"(kOffset));
  return bits;
}

template <int kOffset = 0>
__device__ __forceinline__ float2 load_shared_pair(std::uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2 + %3];"
               : "=f"(v.x), "=f"(v.y)
               : "r"(address), "n"(kOffset));
  return v;
}

template <int kOffset = 0>
__device__ __forceinline__ uint4 load_shared_piece(std::uint32_t address) {
  uint4 bits;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "r"(address), "n"(kOffset));
  return bits;
}

template <int kOffset = 0>
__device__ __forceinline__ void store_shared(std::uint32_t address, std::uint32_t bits) {
  asm volatile("st.shared.u32 [%0 + %2], %1;" ::"r"(address), "r"(bits), "n"(kOffset));
}

template <int kOffset = 0>
__device__ __forceinline__ void store_shared(std::uint32_t address, uint2 bits) {
  asm volatile("st.shared.v2.u32 [%0 + %3], {%1, %2};" ::"r"(address), "r"(bits.x), "r"(bits.y),
               "n"(kOffset));
}

template <int kOffset = 0>
__device__ __forceinline__ void store_shared_piece(std::uint32_t address, uint4 bits) {
  asm volatile("st.shared.v4.u32 [%0 + %5], {%1, %2, %3, %4};" ::"r"(address), "r"(bits.x),
               "r"(bits.y), "r"(bits.z), "r"(bits.w), "n"(kOffset));
}
template <int kOffset = 0>
__device__ __forceinline__ void store_shared_piece(std::uint32_t address, float4 v) {
  store_shared_piece<kOffset>(address, make_uint4(__float_as_uint(v.x), __float_as_uint(v.y),
                                                  __float_as_uint(v.z), __float_as_uint(v.w)));
}

// Brings 16 bytes from global memory while the thread goes on, or zeros: `from` is not read then.
// What is waited for with __pipeline_wait_prior.
__device__ __forceinline__ void copy_piece_async(std::uint32_t to, const void* from, bool is) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(is ? 16 : 0)
               : "memory");
}

// Has a line of global memory brought to the second-level cache.
__device__ __forceinline__ void prefetch(const void* from, bool is) {
  if (is) asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// Four 8 by 8 matrices of 16-bit numbers, of which a lane has two neighbours in row lane / 4. Lane
// i brings the address of row i % 8 of matrix i / 8.
template <int kOffset = 0>
__device__ __forceinline__ void store_matrices(std::uint32_t row, uint4 bits) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0 + %5], {%1, %2, %3, %4};" ::"r"(row),
               "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w), "n"(kOffset)
               : "memory");
}

}  // namespace mamba3
