// One chunk of one head inside mamba3_scan: its sizes, its inputs and a worker's scratch memory.
// Rows are (token, rank) pairs, rank fastest.
//
// Matrices in scratch are row-major. Their strides are odd multiples of a cache line, so that a
// column spreads over all sets of the first-level cache, and they have room for the kernels to load
// and store whole vectors and register tiles. That room may hold anything: it only ever meets
// itself.
#pragma once

#include <cstdint>

#include "ops/mamba3_common/mamba3_args.h"
#include "ops/mamba3_common/token_scalars.h"

namespace mamba3 {

struct ChunkSizes {
  explicit ChunkSizes(const Mamba3Dims& dims);

  std::int64_t rank;    // r
  std::int64_t n;       // state size
  std::int64_t p;       // head dim
  std::int64_t tokens;  // most tokens in a chunk, c
  std::int64_t rows;    // c * r
  // Strides in elements of matrices with n, p and `rows` columns.
  std::int64_t n_stride;
  std::int64_t p_stride;
  std::int64_t row_stride;
  std::int64_t state_elements;  // of one state [n, p] with its padding
};

// Rows that a register tile may touch past the last one.
inline constexpr std::int64_t kRowPadding = 8;

class Carver;

// A chunk as one head sees it. Pointers are at the chunk's first token.
struct ChunkInputs {
  std::int64_t tokens = 0;
  std::int64_t head = 0;
  const TokenScalars* scalars = nullptr;        // [tokens]
  const double* half_tanh = nullptr;            // [tokens, s]
  const std::uint8_t* finite_angles = nullptr;  // [tokens]
  const float* in_b = nullptr;                  // [tokens, r, g, n] normalised; this head's group
  const float* out_c = nullptr;                 // [tokens, r, g, n] likewise
  const float* x = nullptr;                     // [tokens, p] rows columns.row_stride apart
  const float* z = nullptr;                     // [tokens, p] likewise
  float* y = nullptr;                           // [tokens, p] rows y_stride apart
  std::int64_t y_stride = 0;
};

// Two neighbouring bf16 numbers, the first in the low half.
using Bf16Pair = std::uint32_t;

// The operands of products in bf16 (scan_products_avx512bf16.cpp says how they are paired).
struct Bf16Scratch {
  std::int64_t n_pair_stride;    // words
  std::int64_t row_pair_stride;  // words
  Bf16Pair* q;                   // [rows, n / 2]
  Bf16Pair* k;                   // [n / 2, rows]
  Bf16Pair* k_t;                 // [n, rows / 2]
  Bf16Pair* x;                   // [rows / 2, p]
  Bf16Pair* x_state;             // [rows / 2, p]
  Bf16Pair* state;               // [n / 2, p]
  Bf16Pair* k_carried;           // [r / 2, n]
  Bf16Pair* x_carried;           // [r / 2, p]
  Bf16Pair* scores;              // [rows, rows / 2]
};

// What a worker needs for the chunk it is busy with.
struct ChunkScratch {
  ChunkScratch(const Mamba3Dims& dims, const ChunkSizes& sizes, bool bf16_products, Carver& carver);

  // Per row; what belongs to a token is repeated for each rank.
  std::int32_t* row_token;  // [rows]
  std::int32_t* row_limit;  // [rows] the first column that the row does not see
  float* sum_high;          // [rows] sum of log decays since the chunk's start, as two floats
  float* sum_low;           // [rows]
  float* source;            // [rows] weight of the row's outer product, seen from later tokens
  // Per token.
  float* decay;    // [c] exp(sum of log decays since the chunk's start)
  float* to_last;  // [c] weight of the token's outer product in the state after the last token
  std::uint32_t* turns;  // [s]
  float* cosine;         // [c, s]
  float* sine;           // [c, s]

  float* k;          // [rows, n]
  float* k_t;        // [n, rows]; not with bf16 products
  float* q;          // [rows, n]
  float* x;          // [rows, p] x times mimo_x; not with bf16 products
  float* x_state;    // [rows, p] the same times to_last; not with bf16 products
  float* k_carried;  // [r, n] the previous token's k
  float* x_carried;  // [r, p] the previous token's x, times mimo_x and the first token's carry
  float* weights;    // [c, rows] exp(sum_t - sum_j) * source_j; a token's own columns: its `now`
  float* scores;     // [rows, rows] (q k_t) * weights; not with bf16 products
  float* y;          // [rows, p]
  float* state;      // [n, p]
  Bf16Scratch bf16;  // with bf16 products only
};

}  // namespace mamba3
