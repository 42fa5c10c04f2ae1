#include "ops/linear/processor.h"

#include <atomic>

namespace mamba3 {
namespace {

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

std::atomic<bool> bf16_products_allowed{true};

}  // namespace

bool multiplies_bf16() {
  static const bool has = has_avx512_bf16();
  return has && bf16_products_allowed.load(std::memory_order_relaxed);
}

void allow_bf16_products(bool allowed) {
  bf16_products_allowed.store(allowed, std::memory_order_relaxed);
}

}  // namespace mamba3
