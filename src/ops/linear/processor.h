// What the processor offers beyond Highway's instruction sets.
#pragma once

namespace mamba3 {

// Products of bf16 pairs summed in fp32 (AVX512-BF16).
bool multiplies_bf16();

// Tests turn these products off to reach the kernels of lesser processors.
void allow_bf16_products(bool allowed);

}  // namespace mamba3
