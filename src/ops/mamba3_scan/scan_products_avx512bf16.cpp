// The matrix products of one chunk with inputs rounded to bf16 and fp32 sums, on AVX512-BF16. The
// instruction takes pairs of neighbours along the summed dimension, so every operand is kept as
// 32-bit words of two bf16 numbers: a left operand along its rows, a right operand with two rows
// woven into one.
#include <immintrin.h>

#include "ops/mamba3_scan/scan_products_avx512bf16.h"
#include "ops/simd/unroll.h"

// A tile that goes through memory, to a function that was not inlined, is no longer in registers.
#define MAMBA3_INLINE inline __attribute__((always_inline))

namespace mamba3 {
namespace {

constexpr int kTileRows = 8;
constexpr std::int64_t kLanes = 16;
static_assert(kTileRows <= kRowPadding);

__m512i load_words(const Bf16Pair* from) {
  return _mm512_loadu_si512(from);
}

__mmask16 first_lanes(std::int64_t count) {
  return count >= kLanes ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1);
}

// Two vectors of floats as bf16, neighbours from each in one word.
__m512i weave(__m512 low, __m512 high) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// Rows 2i and 2i + 1 become row i of words; a missing last row counts as zeros.
void weave_rows(const float* from, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                Bf16Pair* to) {
  for (std::int64_t i = 0; i < rows; i += 2) {
    const float* low = from + i * stride;
    const float* high = low + stride;
    Bf16Pair* out = to + i / 2 * stride;
    for (std::int64_t j = 0; j < columns; j += kLanes) {
      const __m512 b = i + 1 < rows ? _mm512_loadu_ps(high + j) : _mm512_setzero_ps();
      _mm512_storeu_si512(out + j, weave(_mm512_loadu_ps(low + j), b));
    }
  }
}

// 16 x 16 words, rows to columns.
void transpose_block(__m512i (&block)[16]) {
  __m512i step[16];
  MAMBA3_UNROLL
  for (int i = 0; i < 16; i += 2) {
    step[i] = _mm512_unpacklo_epi32(block[i], block[i + 1]);
    step[i + 1] = _mm512_unpackhi_epi32(block[i], block[i + 1]);
  }
  MAMBA3_UNROLL
  for (int i = 0; i < 16; i += 4) {
    block[i] = _mm512_unpacklo_epi64(step[i], step[i + 2]);
    block[i + 1] = _mm512_unpackhi_epi64(step[i], step[i + 2]);
    block[i + 2] = _mm512_unpacklo_epi64(step[i + 1], step[i + 3]);
    block[i + 3] = _mm512_unpackhi_epi64(step[i + 1], step[i + 3]);
  }
  MAMBA3_UNROLL
  for (int i = 0; i < 4; ++i) {
    step[i] = _mm512_shuffle_i32x4(block[i], block[i + 4], 0x88);
    step[i + 4] = _mm512_shuffle_i32x4(block[i], block[i + 4], 0xdd);
    step[i + 8] = _mm512_shuffle_i32x4(block[i + 8], block[i + 12], 0x88);
    step[i + 12] = _mm512_shuffle_i32x4(block[i + 8], block[i + 12], 0xdd);
  }
  MAMBA3_UNROLL
  for (int i = 0; i < 4; ++i) {
    block[i] = _mm512_shuffle_i32x4(step[i], step[i + 8], 0x88);
    block[i + 4] = _mm512_shuffle_i32x4(step[i + 4], step[i + 12], 0x88);
    block[i + 8] = _mm512_shuffle_i32x4(step[i], step[i + 8], 0xdd);
    block[i + 12] = _mm512_shuffle_i32x4(step[i + 4], step[i + 12], 0xdd);
  }
}

// Floats [0, count) of a row as words; zeros follow the last.
__m512i pairs_of_row(const float* row, std::int64_t count) {
  const __m512 low = _mm512_maskz_loadu_ps(first_lanes(count), row);
  const __m512 high = count > kLanes
                          ? _mm512_maskz_loadu_ps(first_lanes(count - kLanes), row + kLanes)
                          : _mm512_setzero_ps();
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// 16 rows of K, 32 columns: as words of neighbouring columns, turned, for the scores; and as words
// of neighbouring rows for the state.
void pack_key_block(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows,
                    std::int64_t row, std::int64_t column) {
  const Bf16Scratch& bf16 = scratch.bf16;
  const float* k = scratch.k + row * sizes.n_stride + column;
  __m512i block[16];
  MAMBA3_UNROLL
  for (int i = 0; i < 16; ++i) {
    block[i] = row + i < rows ? pairs_of_row(k + i * sizes.n_stride, sizes.n - column)
                              : _mm512_setzero_si512();
  }
  transpose_block(block);
  const std::int64_t half_row = row / 2;
  MAMBA3_UNROLL
  for (int i = 0; i < 16; ++i) {
    const std::int64_t n = column + 2 * i;
    if (n >= sizes.n) break;
    _mm512_storeu_si512(bf16.k + n / 2 * sizes.row_stride + row, block[i]);
    Bf16Pair* out = bf16.k_t + n * bf16.row_pair_stride + half_row;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(block[i]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + bf16.row_pair_stride),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(block[i], 16)));
  }
}

template <int kVecs>
struct Tile {
  __m512 at[kTileRows][kVecs];

  MAMBA3_INLINE void clear() {
    MAMBA3_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) at[i][v] = _mm512_setzero_ps();
    }
  }

  MAMBA3_INLINE void load(const float* c, std::int64_t c_stride) {
    MAMBA3_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) at[i][v] = _mm512_loadu_ps(c + i * c_stride + v * kLanes);
    }
  }

  // += a [tile rows, 2 pairs] b [2 pairs, tile columns]
  MAMBA3_INLINE void accumulate(const Bf16Pair* a, std::int64_t a_row_stride, std::int64_t a_stride,
                                const Bf16Pair* b, std::int64_t b_stride, std::int64_t pairs) {
    for (std::int64_t k = 0; k < pairs; ++k, a += a_stride, b += b_stride) {
      __m512i b_row[kVecs];
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) b_row[v] = load_words(b + v * kLanes);
      MAMBA3_UNROLL
      for (int i = 0; i < kTileRows; ++i) {
        const __m512i a_ik = _mm512_set1_epi32(static_cast<int>(a[i * a_row_stride]));
        MAMBA3_UNROLL
        for (int v = 0; v < kVecs; ++v) {
          at[i][v] = _mm512_dpbf16_ps(at[i][v], (__m512bh)a_ik, (__m512bh)b_row[v]);
        }
      }
    }
  }

  MAMBA3_INLINE void store(float* c, std::int64_t c_stride) const {
    MAMBA3_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) _mm512_storeu_ps(c + i * c_stride + v * kLanes, at[i][v]);
    }
  }
};

// Columns of its own token that a row leaves to bf16_add_own().
std::int64_t own_columns(const ChunkSizes& sizes) {
  return sizes.rank == 1 ? 1 : 0;
}

template <int kVecs>
void output_tile(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t row,
                 std::int64_t column) {
  const Bf16Scratch& bf16 = scratch.bf16;
  Tile<kVecs> tile;
  tile.clear();
  tile.accumulate(bf16.q + row * bf16.n_pair_stride, bf16.n_pair_stride, 1, bf16.state + column,
                  sizes.p_stride, (sizes.n + 1) / 2);
  MAMBA3_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    const __m512 decay = _mm512_set1_ps(scratch.decay[scratch.row_token[row + i]]);
    MAMBA3_UNROLL
    for (int v = 0; v < kVecs; ++v) tile.at[i][v] = _mm512_mul_ps(tile.at[i][v], decay);
  }
  const Bf16Pair* scores = bf16.scores + row * bf16.row_pair_stride;
  const Bf16Pair* x = bf16.x + column;
  const std::int64_t own = own_columns(sizes);
  const std::int64_t common = (scratch.row_limit[row] - own) / 2;
  tile.accumulate(scores, bf16.row_pair_stride, 1, x, sizes.p_stride, common);
  // Each row's own columns past the common ones, as in fp32: an odd last one is half a pair, whose
  // other half must not count, not even as a zero times it.
  MAMBA3_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    const std::int64_t limit = scratch.row_limit[row + i] - own;
    for (std::int64_t k = common; 2 * k < limit; ++k) {
      const __m512i halves = _mm512_set1_epi32(2 * k + 1 < limit ? -1 : 0xffff);
      const __m512i score = _mm512_and_si512(
          _mm512_set1_epi32(static_cast<int>(scores[i * bf16.row_pair_stride + k])), halves);
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        const __m512i words = load_words(x + k * sizes.p_stride + v * kLanes);
        tile.at[i][v] = _mm512_dpbf16_ps(tile.at[i][v], (__m512bh)score,
                                         (__m512bh)_mm512_and_si512(words, halves));
      }
    }
  }
  tile.store(scratch.y + row * sizes.p_stride + column, sizes.p_stride);
}

// Adds the carried term to rows [row, row + tile rows) of the state and packs them.
template <int kVecs>
void carried_tile(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t row,
                  std::int64_t column) {
  const Bf16Scratch& bf16 = scratch.bf16;
  float* state = scratch.state + row * sizes.p_stride + column;
  Bf16Pair* pairs = bf16.state + row / 2 * sizes.p_stride + column;
  Tile<kVecs> tile;
  tile.load(state, sizes.p_stride);
  tile.accumulate(bf16.k_carried + row, 1, sizes.n_stride, bf16.x_carried + column, sizes.p_stride,
                  (sizes.rank + 1) / 2);
  tile.store(state, sizes.p_stride);
  MAMBA3_UNROLL
  for (int i = 0; i < kTileRows; i += 2) {
    if (row + i >= sizes.n) break;
    MAMBA3_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      const __m512 high = row + i + 1 < sizes.n ? tile.at[i + 1][v] : _mm512_setzero_ps();
      _mm512_storeu_si512(pairs + i / 2 * sizes.p_stride + v * kLanes, weave(tile.at[i][v], high));
    }
  }
}

template <int kVecs>
void state_tile(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t pairs,
                std::int64_t row, std::int64_t column, const float* decay_of_chunk) {
  const Bf16Scratch& bf16 = scratch.bf16;
  Tile<kVecs> tile;
  tile.clear();
  tile.accumulate(bf16.k_t + row * bf16.row_pair_stride, bf16.row_pair_stride, 1,
                  bf16.x_state + column, sizes.p_stride, pairs);
  float* state = scratch.state + row * sizes.p_stride + column;
  if (decay_of_chunk != nullptr) {
    const __m512 decay = _mm512_set1_ps(*decay_of_chunk);
    MAMBA3_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        const __m512 before = _mm512_loadu_ps(state + i * sizes.p_stride + v * kLanes);
        tile.at[i][v] = _mm512_fmadd_ps(decay, before, tile.at[i][v]);
      }
    }
  }
  tile.store(state, sizes.p_stride);
}

// x [p] of a row, times its mimo_x; nothing past the last is read.
struct XRow {
  const float* x;
  const float* mimo_x;  // or null
  float to_state;

  __m512 lanes(std::int64_t column, __mmask16 mask) const {
    const __m512 v = _mm512_maskz_loadu_ps(mask, x + column);
    return mimo_x == nullptr ? v : _mm512_mul_ps(v, _mm512_maskz_loadu_ps(mask, mimo_x + column));
  }
};

}  // namespace

void bf16_pack_keys(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; row += 16) {
    for (std::int64_t column = 0; column < sizes.n; column += 32) {
      pack_key_block(sizes, scratch, rows, row, column);
    }
  }
}

void bf16_pack_x(const Mamba3Dims& dims, const Mamba3Params& params, const ChunkSizes& sizes,
                 const ChunkInputs& in, std::int64_t x_stride, const ChunkScratch& scratch) {
  const std::int64_t rows = in.tokens * sizes.rank;
  const auto row_of = [&](std::int64_t row) {
    const std::int64_t token = scratch.row_token[row];
    const std::int64_t mimo_row = in.head * sizes.rank + row - token * sizes.rank;
    return XRow{in.x + token * x_stride, dims.mimo ? params.mimo_x + mimo_row * sizes.p : nullptr,
                scratch.to_last[token]};
  };
  for (std::int64_t row = 0; row < rows; row += 2) {
    const XRow low = row_of(row);
    const bool pair = row + 1 < rows;
    const XRow high = row_of(pair ? row + 1 : row);
    const __m512 low_to_state = _mm512_set1_ps(low.to_state);
    const __m512 high_to_state = _mm512_set1_ps(high.to_state);
    for (std::int64_t column = 0; column < sizes.p; column += kLanes) {
      const __mmask16 mask = first_lanes(sizes.p - column);
      const __m512 a = low.lanes(column, mask);
      const __m512 b = pair ? high.lanes(column, mask) : _mm512_setzero_ps();
      const __m512 b_state = pair ? _mm512_mul_ps(b, high_to_state) : b;
      const std::int64_t at = row / 2 * sizes.p_stride + column;
      _mm512_storeu_si512(scratch.bf16.x + at, weave(a, b));
      _mm512_storeu_si512(scratch.bf16.x_state + at,
                          weave(_mm512_mul_ps(a, low_to_state), b_state));
    }
  }
}

void bf16_pack_queries(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* q = scratch.q + row * sizes.n_stride;
    Bf16Pair* out = scratch.bf16.q + row * scratch.bf16.n_pair_stride;
    for (std::int64_t column = 0; column < sizes.n; column += 32) {
      _mm512_storeu_si512(out + column / 2, pairs_of_row(q + column, sizes.n - column));
    }
  }
}

void bf16_pack_state(const ChunkSizes& sizes, const ChunkScratch& scratch) {
  weave_rows(scratch.state, sizes.n, sizes.p, sizes.p_stride, scratch.bf16.state);
}

void bf16_add_carried(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t begin,
                      std::int64_t end) {
  weave_rows(scratch.k_carried, sizes.rank, sizes.n, sizes.n_stride, scratch.bf16.k_carried);
  weave_rows(scratch.x_carried, sizes.rank, sizes.p, sizes.p_stride, scratch.bf16.x_carried);
  std::int64_t column = 0;
  for (; column + kLanes < sizes.p; column += 2 * kLanes) {
    for (std::int64_t row = begin; row < end; row += kTileRows) {
      carried_tile<2>(sizes, scratch, row, column);
    }
  }
  for (std::int64_t row = begin; row < end && column < sizes.p; row += kTileRows) {
    carried_tile<1>(sizes, scratch, row, column);
  }
}

void bf16_scores(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows) {
  const Bf16Scratch& bf16 = scratch.bf16;
  for (std::int64_t column = 0; column < rows; column += kLanes) {
    const std::int64_t token_row = scratch.row_token[column] * sizes.rank;
    for (std::int64_t row = token_row / kTileRows * kTileRows; row < rows; row += kTileRows) {
      Tile<1> tile;
      tile.clear();
      tile.accumulate(bf16.q + row * bf16.n_pair_stride, bf16.n_pair_stride, 1, bf16.k + column,
                      sizes.row_stride, (sizes.n + 1) / 2);
      MAMBA3_UNROLL
      for (int i = 0; i < kTileRows; ++i) {
        const float* weights =
            scratch.weights + scratch.row_token[row + i] * sizes.row_stride + column;
        const __m512 weighted = _mm512_mul_ps(tile.at[i][0], _mm512_loadu_ps(weights));
        Bf16Pair* out = bf16.scores + (row + i) * bf16.row_pair_stride + column / 2;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(weighted));
      }
    }
  }
}

void bf16_outputs(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows) {
  std::int64_t column = 0;
  for (; column + kLanes < sizes.p; column += 2 * kLanes) {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      output_tile<2>(sizes, scratch, row, column);
    }
  }
  for (std::int64_t row = 0; row < rows && column < sizes.p; row += kTileRows) {
    output_tile<1>(sizes, scratch, row, column);
  }
}

void bf16_add_own(const Mamba3Dims& dims, const Mamba3Params& params, const ChunkSizes& sizes,
                  const ChunkInputs& in, std::int64_t x_stride, const ChunkScratch& scratch) {
  if (own_columns(sizes) == 0) return;
  const float* mimo_x = dims.mimo ? params.mimo_x + in.head * sizes.p : nullptr;
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    const float* q = scratch.q + t * sizes.n_stride;
    const float* k = scratch.k + t * sizes.n_stride;
    __m512 sum = _mm512_setzero_ps();
    for (std::int64_t column = 0; column < sizes.n; column += kLanes) {
      const __mmask16 mask = first_lanes(sizes.n - column);
      sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, q + column),
                            _mm512_maskz_loadu_ps(mask, k + column), sum);
    }
    const float now = scratch.weights[t * sizes.row_stride + t];
    const __m512 weight = _mm512_set1_ps(_mm512_reduce_add_ps(sum) * now);
    const XRow x{in.x + t * x_stride, mimo_x, 0};
    float* y = scratch.y + t * sizes.p_stride;
    for (std::int64_t column = 0; column < sizes.p; column += kLanes) {
      const __m512 lanes = x.lanes(column, first_lanes(sizes.p - column));
      _mm512_storeu_ps(y + column, _mm512_fmadd_ps(weight, lanes, _mm512_loadu_ps(y + column)));
    }
  }
}

void bf16_state(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t rows,
                const float* decay_of_chunk) {
  const std::int64_t pairs = (rows + 1) / 2;
  std::int64_t column = 0;
  for (; column + kLanes < sizes.p; column += 2 * kLanes) {
    for (std::int64_t row = 0; row < sizes.n; row += kTileRows) {
      state_tile<2>(sizes, scratch, pairs, row, column, decay_of_chunk);
    }
  }
  for (std::int64_t row = 0; row < sizes.n && column < sizes.p; row += kTileRows) {
    state_tile<1>(sizes, scratch, pairs, row, column, decay_of_chunk);
  }
}

}  // namespace mamba3
