// The matrix products of one chunk in fp32. Each element of a result is one chain of fused
// multiply-adds in a fixed order, whatever the tile that holds it, so the bits of a row depend only
// on its own inputs.
#if defined(MAMBA3_SCAN_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_SCAN_MATMUL_INL_H_
#undef MAMBA3_SCAN_MATMUL_INL_H_
#else
#define MAMBA3_SCAN_MATMUL_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/mamba3_scan/scan_chunk.h"
#include "ops/simd/unroll.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using TileTag = hn::ScalableTag<float>;
using TileVec = hn::Vec<TileTag>;

// 16 accumulators where there are 32 registers, 12 where there are 16; few rows, so that a chunk's
// are whole tiles. Scores use narrow tiles: they waste less above the diagonal.
inline constexpr std::int64_t kLanes = static_cast<std::int64_t>(hn::MaxLanes(TileTag()));
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
inline constexpr int kTileRows = 4;
inline constexpr int kTileVecs = 3;
#else
inline constexpr int kTileRows = 8;
inline constexpr int kTileVecs = 2;
#endif
inline constexpr int kScoreVecs = kLanes >= 16 ? 1 : 2;
static_assert(kTileRows <= kRowPadding);

template <int kVecs>
struct Tile {
  TileVec at[kTileRows][kVecs];

  HWY_INLINE Tile() {}  // an implicit one would not be compiled for the target

  HWY_INLINE void clear() {
    MAMBA3_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) at[i][v] = hn::Zero(TileTag());
    }
  }

  HWY_INLINE void load(const float* c, std::int64_t c_stride) {
    MAMBA3_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        at[i][v] = hn::LoadU(TileTag(), c + i * c_stride + v * kLanes);
      }
    }
  }

  // += a [tile rows, depth] b [depth, tile columns]
  HWY_INLINE void accumulate(const float* a, std::int64_t a_row_stride, std::int64_t a_stride,
                             const float* b, std::int64_t b_stride, std::int64_t depth) {
    const TileTag d;
    MAMBA3_UNROLL_BY_4
    for (std::int64_t k = 0; k < depth; ++k, a += a_stride, b += b_stride) {
      TileVec b_row[kVecs];
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) b_row[v] = hn::LoadU(d, b + v * kLanes);
      MAMBA3_UNROLL
      for (int i = 0; i < kTileRows; ++i) {
        const TileVec a_ik = hn::Set(d, a[i * a_row_stride]);
        MAMBA3_UNROLL
        for (int v = 0; v < kVecs; ++v) at[i][v] = hn::MulAdd(a_ik, b_row[v], at[i][v]);
      }
    }
  }

  // = decay * c + the tile
  HWY_INLINE void fold(TileVec decay, const float* c, std::int64_t c_stride) {
    MAMBA3_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        const TileVec before = hn::LoadU(TileTag(), c + i * c_stride + v * kLanes);
        at[i][v] = hn::MulAdd(decay, before, at[i][v]);
      }
    }
  }

  HWY_INLINE void store(float* c, std::int64_t c_stride) const {
    MAMBA3_UNROLL
    for (int i = 0; i < kTileRows; ++i) {
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        hn::StoreU(at[i][v], TileTag(), c + i * c_stride + v * kLanes);
      }
    }
  }
};

// Calls body.template operator()<vecs>(first column) for panels that cover `columns`: as wide as a
// tile while no single vector is left over by that, whose sums would wait for each other.
template <class Body>
HWY_INLINE void for_panels(std::int64_t columns, const Body& body) {
  std::int64_t vecs = (columns + kLanes - 1) / kLanes;
  std::int64_t column = 0;
  for (; vecs > kTileVecs + 1 || vecs == kTileVecs; vecs -= kTileVecs) {
    body.template operator()<kTileVecs>(column);
    column += kTileVecs * kLanes;
  }
  for (; vecs >= 2; vecs -= 2, column += 2 * kLanes) body.template operator()<2>(column);
  if (vecs == 1) body.template operator()<1>(column);
}

// scores = (q k_t) * weights in the columns that each row sees; the rest is left undefined.
inline HWY_NOINLINE void chunk_scores(const ChunkSizes& sizes, const ChunkScratch& scratch,
                                      std::int64_t rows) {
  constexpr std::int64_t kColumns = kScoreVecs * kLanes;
  const TileTag d;
  for (std::int64_t column = 0; column < rows; column += kColumns) {
    // The first tile with a row that sees this column: that of the column's own token.
    const std::int64_t token_row = scratch.row_token[column] * sizes.rank;
    for (std::int64_t row = token_row / kTileRows * kTileRows; row < rows; row += kTileRows) {
      Tile<kScoreVecs> tile;
      tile.clear();
      tile.accumulate(scratch.q + row * sizes.n_stride, sizes.n_stride, 1, scratch.k_t + column,
                      sizes.row_stride, sizes.n);
      MAMBA3_UNROLL
      for (int i = 0; i < kTileRows; ++i) {
        const float* weights =
            scratch.weights + scratch.row_token[row + i] * sizes.row_stride + column;
        MAMBA3_UNROLL
        for (int v = 0; v < kScoreVecs; ++v) {
          tile.at[i][v] = hn::Mul(tile.at[i][v], hn::LoadU(d, weights + v * kLanes));
        }
      }
      tile.store(scratch.scores + row * sizes.row_stride + column, sizes.row_stride);
    }
  }
}

template <int kVecs>
HWY_INLINE void output_tile(const ChunkSizes& sizes, const ChunkScratch& scratch, std::int64_t row,
                            std::int64_t column) {
  const TileTag d;
  Tile<kVecs> tile;
  tile.clear();
  tile.accumulate(scratch.q + row * sizes.n_stride, sizes.n_stride, 1, scratch.state + column,
                  sizes.p_stride, sizes.n);
  MAMBA3_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    const TileVec decay = hn::Set(d, scratch.decay[scratch.row_token[row + i]]);
    MAMBA3_UNROLL
    for (int v = 0; v < kVecs; ++v) tile.at[i][v] = hn::Mul(tile.at[i][v], decay);
  }
  const float* scores = scratch.scores + row * sizes.row_stride;
  const float* x = scratch.x + column;
  const std::int64_t common = scratch.row_limit[row];
  tile.accumulate(scores, sizes.row_stride, 1, x, sizes.p_stride, common);
  // Past what the tile's first row sees, each row takes only its own columns: an x that is not
  // finite must not reach an earlier token, not even times zero.
  MAMBA3_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    for (std::int64_t k = common; k < scratch.row_limit[row + i]; ++k) {
      const TileVec score = hn::Set(d, scores[i * sizes.row_stride + k]);
      MAMBA3_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        tile.at[i][v] =
            hn::MulAdd(score, hn::LoadU(d, x + k * sizes.p_stride + v * kLanes), tile.at[i][v]);
      }
    }
  }
  tile.store(scratch.y + row * sizes.p_stride + column, sizes.p_stride);
}

// y = decay * (q state) + scores x
inline HWY_NOINLINE void chunk_outputs(const ChunkSizes& sizes, const ChunkScratch& scratch,
                                       std::int64_t rows) {
  for_panels(sizes.p, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      output_tile<kVecs>(sizes, scratch, row, column);
    }
  });
}

// The previous token's outer product enters the state before the chunk's first decay, in rows
// [begin, end) of the state: state += k_carried^T x_carried.
inline HWY_NOINLINE void add_carried(const ChunkSizes& sizes, const ChunkScratch& scratch,
                                     std::int64_t begin, std::int64_t end) {
  for_panels(sizes.p, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = begin; row < end; row += kTileRows) {
      Tile<kVecs> tile;
      float* state = scratch.state + row * sizes.p_stride + column;
      tile.load(state, sizes.p_stride);
      tile.accumulate(scratch.k_carried + row, 1, sizes.n_stride, scratch.x_carried + column,
                      sizes.p_stride, sizes.rank);
      tile.store(state, sizes.p_stride);
    }
  });
}

// What the chunk adds to the state, k_t x_state: folded in, state = decay * state + it, or stored
// in its place. It is summed from zero either way, so that taking the chunks one after the other or
// all at once gives the same bits. `carried`: then adds the next chunk's carried term, as
// add_carried() does, while the state is in registers.
template <bool kFold>
inline HWY_NOINLINE void chunk_state(const ChunkSizes& sizes, const ChunkScratch& scratch,
                                     std::int64_t rows, float decay_of_chunk, bool carried) {
  const TileVec decay = hn::Set(TileTag(), decay_of_chunk);
  for_panels(sizes.p, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = 0; row < sizes.n; row += kTileRows) {
      Tile<kVecs> tile;
      tile.clear();
      tile.accumulate(scratch.k_t + row * sizes.row_stride, sizes.row_stride, 1,
                      scratch.x_state + column, sizes.p_stride, rows);
      float* state = scratch.state + row * sizes.p_stride + column;
      if constexpr (kFold) tile.fold(decay, state, sizes.p_stride);
      if (carried) {
        tile.accumulate(scratch.k_carried + row, 1, sizes.n_stride, scratch.x_carried + column,
                        sizes.p_stride, sizes.rank);
      }
      tile.store(state, sizes.p_stride);
    }
  });
}

// The same fold when what the chunk adds was stored, for rows [begin, end) of the state; leaves the
// state from before the fold in its place.
inline HWY_NOINLINE void fold_stored(const ChunkSizes& sizes, float decay_of_chunk,
                                     std::int64_t begin, std::int64_t end, float* state,
                                     float* stored) {
  const TileTag d;
  const TileVec decay = hn::Set(d, decay_of_chunk);
  for (std::int64_t i = begin * sizes.p_stride; i < end * sizes.p_stride; i += kLanes) {
    const TileVec before = hn::LoadU(d, state + i);
    hn::StoreU(hn::MulAdd(decay, before, hn::LoadU(d, stored + i)), d, state + i);
    hn::StoreU(before, d, stored + i);
  }
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once a target
