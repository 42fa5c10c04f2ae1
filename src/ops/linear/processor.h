// What the processor offers beyond Highway's instruction sets.
#pragma once

#include <hwy/targets.h>

namespace mamba3 {

// Products of bf16 pairs summed in fp32. Follows Highway's choice of instruction sets, so that
// tests which force a lesser one get it here as well.
inline bool multiplies_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0 && (hwy::SupportedTargets() & HWY_AVX3_DL) != 0;
#else
  return false;
#endif
}

}  // namespace mamba3
