// Products of a warpgroup with both operands in shared memory and k-major, for more widths than
// wgmma.cuh has: d [64, N] += A [64, 16] B [16, N], d with N / 2 numbers a thread. Number
// 4 j + 2 h + i of lane l of warp w is row 16 w + 8 h + l / 4, column 8 j + 2 (l % 4) + i.
#pragma once

#include "device/wgmma.cuh"

namespace mamba3 {

#define MAMBA3_FOUR(d, i) "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3])
#define MAMBA3_SIXTEEN(d, i) \
  MAMBA3_FOUR(d, i), MAMBA3_FOUR(d, (i) + 4), MAMBA3_FOUR(d, (i) + 8), MAMBA3_FOUR(d, (i) + 12)
#define MAMBA3_SIXTY_FOUR(d, i)                                                   \
  MAMBA3_SIXTEEN(d, i), MAMBA3_SIXTEEN(d, (i) + 16), MAMBA3_SIXTEEN(d, (i) + 32), \
      MAMBA3_SIXTEEN(d, (i) + 48)

__device__ __forceinline__ void wgmma_k16(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, 1, 1, 1, 0, 0;\n"
      : MAMBA3_SIXTEEN(d, 0), MAMBA3_SIXTEEN(d, 16)
      : "l"(a), "l"(b));
}

__device__ __forceinline__ void wgmma_k16(float (&d)[36], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n72k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35"
      "}, %36, %37, 1, 1, 1, 0, 0;\n"
      : MAMBA3_SIXTEEN(d, 0), MAMBA3_SIXTEEN(d, 16), MAMBA3_FOUR(d, 32)
      : "l"(a), "l"(b));
}

__device__ __forceinline__ void wgmma_k16(float (&d)[40], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39"
      "}, %40, %41, 1, 1, 1, 0, 0;\n"
      : MAMBA3_SIXTEEN(d, 0), MAMBA3_SIXTEEN(d, 16), MAMBA3_FOUR(d, 32), MAMBA3_FOUR(d, 36)
      : "l"(a), "l"(b));
}

__device__ __forceinline__ void wgmma_k16(float (&d)[64], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, 1, 1, 1, 0, 0;\n"
      : MAMBA3_SIXTY_FOUR(d, 0)
      : "l"(a), "l"(b));
}

// Without `accumulate` d is not read.
__device__ __forceinline__ void wgmma_k16(float (&d)[128], std::uint64_t a, std::uint64_t b,
                                          bool accumulate = true) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, p, 1, 1, 0, 0;\n"
      "}\n"
      : MAMBA3_SIXTY_FOUR(d, 0), MAMBA3_SIXTY_FOUR(d, 64)
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}

#undef MAMBA3_FOUR
#undef MAMBA3_SIXTEEN
#undef MAMBA3_SIXTY_FOUR

}  // namespace mamba3
