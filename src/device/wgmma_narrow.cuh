// Products of a warpgroup that are 16, 32 or 64 columns wide, both factors in shared memory, d by
// eighths of the columns: d [64, N] += A [64, 16] B [16, N]. Numbers 2 h + i of eighth j of lane l
// of warp w are in row 16 w + 8 h + l / 4, column 8 j + 2 (l % 4) + i, as those of mma.sync are.
#pragma once

#include "device/wgmma.cuh"

namespace mamba3 {

#define MAMBA3_EIGHTH(f, d, j) f((d)[j][0]), f((d)[j][1]), f((d)[j][2]), f((d)[j][3])
#define MAMBA3_TWO(f, d, j) MAMBA3_EIGHTH(f, d, j), MAMBA3_EIGHTH(f, d, (j) + 1)
#define MAMBA3_FOUR(f, d, j) MAMBA3_TWO(f, d, j), MAMBA3_TWO(f, d, (j) + 2)

// kTrans: 0 where an operand is k-major, 1 where its columns are not summed over.
template <int kTransA, int kTransB>
__device__ __forceinline__ void wgmma_k16(float (&d)[2][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7"
      "}, %8, %9, 1, 1, 1, %10, %11;\n"
      : MAMBA3_TWO("+f", d, 0)
      : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));
}

template <int kTransA, int kTransB>
__device__ __forceinline__ void wgmma_k16(float (&d)[4][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, 1, 1, 1, %18, %19;\n"
      : MAMBA3_FOUR("+f", d, 0)
      : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));
}

template <int kTransA, int kTransB>
__device__ __forceinline__ void wgmma_k16(float (&d)[8][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, 1, 1, 1, %34, %35;\n"
      : MAMBA3_FOUR("+f", d, 0), MAMBA3_FOUR("+f", d, 4)
      : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));
}

// The first of a sum: d = A B.
template <int kTransA, int kTransB>
__device__ __forceinline__ void wgmma_first_k16(float (&d)[2][4], std::uint64_t a,
                                                std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7"
      "}, %8, %9, 0, 1, 1, %10, %11;\n"
      : MAMBA3_TWO("=f", d, 0)
      : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));
}

template <int kTransA, int kTransB>
__device__ __forceinline__ void wgmma_first_k16(float (&d)[4][4], std::uint64_t a,
                                                std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, 0, 1, 1, %18, %19;\n"
      : MAMBA3_FOUR("=f", d, 0)
      : "l"(a), "l"(b), "n"(kTransA), "n"(kTransB));
}

#undef MAMBA3_EIGHTH
#undef MAMBA3_TWO
#undef MAMBA3_FOUR

}  // namespace mamba3
