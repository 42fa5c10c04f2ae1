// Matrix products of one warp on the tensor cores of every card from compute capability 8.0 on:
// mma.sync with bf16 factors and fp32 sums. Source: the PTX ISA, "Matrix fragments for
// mma.m16n8k16".
//
// Of a product [16, 8] a thread has rows lane / 4 and 8 further, of each columns lane % 4 * 2 and
// the next: d[0], d[1] and d[2], d[3]. Factors come from shared memory by blocks of 8 by 8, whose
// rows begin on 16 bytes; rows of a block best lie in different banks.
#pragma once

#include <cstdint>

namespace mamba3 {

// Four blocks that are 16 rows by 16 columns, from the address of `lane`'s row. Stored rows as rows
// of the first factor, or, transposed, what is summed over as stored rows of the second: then the
// columns of d's first eight are in out[0] and out[1].
__device__ __forceinline__ std::uint32_t rows_first(unsigned lane, unsigned row_bytes) {
  return lane % 16 * row_bytes + lane / 16 * 16;
}
// The same blocks in another order: the columns of d are stored rows.
__device__ __forceinline__ std::uint32_t columns_first(unsigned lane, unsigned row_bytes) {
  return (lane / 16 * 8 + lane % 8) * row_bytes + lane / 8 % 2 * 16;
}

__device__ __forceinline__ void load_blocks(std::uint32_t address, std::uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_transposed(std::uint32_t address, std::uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// d [16, 8] += A [16, 16] B [16, 8].
__device__ __forceinline__ void mma_k16(float (&d)[4], const std::uint32_t (&a)[4],
                                        std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace mamba3
