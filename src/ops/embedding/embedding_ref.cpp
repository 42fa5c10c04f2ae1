#include "ops/embedding/embedding_ref.h"

#include <cmath>
#include <cstring>

namespace mamba3 {
namespace {

// The number that sign, exponent and 7 bits of fraction stand for, by the definition of the format.
double bf16_value(std::uint16_t bits) {
  const int exponent = (bits >> 7) & 0xff;
  const int fraction = bits & 0x7f;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 0xff) return fraction != 0 ? std::nan("") : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, -126 - 7);
  return sign * std::ldexp(128 + fraction, exponent - 127 - 7);
}

}  // namespace

std::vector<double> embedding_ref(const EmbeddingArgs& args) {
  const std::int64_t d = args.table.shape[1];
  std::vector<double> y;
  for (const std::int32_t id : args.ids) {
    for (std::int64_t i = 0; i < d; ++i) {
      const std::int64_t at = id * d + i;
      if (args.table.dtype == DType::kF32) {
        float value = 0;
        std::memcpy(&value, args.table.data + at * 4, 4);
        y.push_back(value);
      } else {
        std::uint16_t bits = 0;
        std::memcpy(&bits, args.table.data + at * 2, 2);
        y.push_back(bf16_value(bits));
      }
    }
  }
  return y;
}

}  // namespace mamba3
