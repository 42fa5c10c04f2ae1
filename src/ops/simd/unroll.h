// How compilers unroll the loops of register tiles.
#pragma once

// Tiles are arrays of vectors: they live in registers only when every loop over them is unrolled.
// The other is for the loop around them: beside the multiply-adds every instruction counts where
// two threads share a core, whose front end then serves each half of the time.
#if defined(__clang__)
#define MAMBA3_UNROLL _Pragma("clang loop unroll(full)")
#define MAMBA3_UNROLL_BY_4 _Pragma("clang loop unroll_count(4)")
#else
#define MAMBA3_UNROLL _Pragma("GCC unroll 16")
#define MAMBA3_UNROLL_BY_4 _Pragma("GCC unroll 4")
#endif
