// Floats as sums of bf16 numbers, on a GPU: what tensor cores multiply.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/arena.h"
#include "core/matrix.h"
#include "mamba3/context.h"

namespace mamba3 {

constexpr int kExactParts = 3;  // bf16 numbers that hold all 24 bits of a float

// Part i is what the parts before it leave, rounded to nearest.
struct Bf16Parts {
  const Bf16* data = nullptr;  // [parts, rows, stride]
  std::int64_t rows = 0;
  std::int64_t stride = 0;

  const Bf16* part(int i) const { return data + i * rows * stride; }
};

// The elements from row to row that let rows of k bf16 numbers begin on 16 bytes.
inline std::int64_t padded_bf16_stride(std::int64_t k) {
  return (k + 7) / 8 * 8;
}

// Of x [rows, k] fp32, with rows `stride` elements apart, in memory of `scope`.
Bf16Parts split_bf16(const ConstMatrix& x, std::int64_t stride, int parts, ArenaScope& scope,
                     Context& ctx);

// What split_bf16 takes.
inline std::size_t split_bf16_bytes(std::int64_t rows, std::int64_t stride, int parts) {
  return static_cast<std::size_t>(parts * rows * stride) * sizeof(Bf16) + Arena::kAlignBytes;
}

}  // namespace mamba3
