// The matrix products of one chunk of the backward pass, on the register tiles of the forward one.
// Each element of a result is one chain of fused multiply-adds in a fixed order.
//
// Products that run over earlier or later tokens alone stop at the tile's own ones: scores and
// their gradients hold zeros above the diagonal.
#if defined(MAMBA3_BACKWARD_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA3_BACKWARD_PRODUCTS_INL_H_
#undef MAMBA3_BACKWARD_PRODUCTS_INL_H_
#else
#define MAMBA3_BACKWARD_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/mamba3_scan/scan_matmul-inl.h"
#include "ops/mamba3_scan_backward/backward_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The first column that no row of the tile sees.
HWY_INLINE std::int64_t tile_limit(const ChunkScratch& chunk, std::int64_t row, std::int64_t rows) {
  return chunk.row_limit[std::min(row + kTileRows, rows) - 1];
}

// The first row of the tile's first token: no row before it sees the tile's columns.
HWY_INLINE std::int64_t tile_first(const ChunkSizes& sizes, const ChunkScratch& chunk,
                                   std::int64_t row) {
  return chunk.row_token[row] * sizes.rank;
}

template <int kVecs>
HWY_INLINE void scale_rows(Tile<kVecs>& tile, const float* by_token, const std::int32_t* tokens) {
  MAMBA3_UNROLL
  for (int i = 0; i < kTileRows; ++i) {
    const TileVec factor = hn::Set(TileTag(), by_token[tokens[i]]);
    MAMBA3_UNROLL
    for (int v = 0; v < kVecs; ++v) tile.at[i][v] = hn::Mul(tile.at[i][v], factor);
  }
}

// out [rows, rows] = a b on and below the diagonal; above it, anything. b [depth, rows].
inline HWY_NOINLINE void lower_product(const ChunkSizes& sizes, const ChunkScratch& chunk,
                                       std::int64_t rows, const float* a, std::int64_t a_stride,
                                       const float* b, std::int64_t depth, float* out) {
  constexpr std::int64_t kColumns = kScoreVecs * kLanes;
  for (std::int64_t column = 0; column < rows; column += kColumns) {
    const std::int64_t first = tile_first(sizes, chunk, column) / kTileRows * kTileRows;
    for (std::int64_t row = first; row < rows; row += kTileRows) {
      Tile<kScoreVecs> tile;
      tile.clear();
      tile.accumulate(a + row * a_stride, a_stride, 1, b + column, sizes.row_stride, depth);
      tile.store(out + row * sizes.row_stride + column, sizes.row_stride);
    }
  }
}

// from_start = decay * (q state), y = from_start + scores x
inline HWY_NOINLINE void read_outs(const ChunkSizes& sizes, const BackwardScratch& scratch,
                                   const float* state, std::int64_t rows) {
  const ChunkScratch& chunk = scratch.chunk;
  for_panels(sizes.p, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      Tile<kVecs> tile;
      tile.clear();
      tile.accumulate(chunk.q + row * sizes.n_stride, sizes.n_stride, 1, state + column,
                      sizes.p_stride, sizes.n);
      scale_rows(tile, chunk.decay, chunk.row_token + row);
      tile.store(scratch.from_start + row * sizes.p_stride + column, sizes.p_stride);
      tile.accumulate(chunk.scores + row * sizes.row_stride, sizes.row_stride, 1, chunk.x + column,
                      sizes.p_stride, tile_limit(chunk, row, rows));
      tile.store(chunk.y + row * sizes.p_stride + column, sizes.p_stride);
    }
  });
}

// grad_end = k grad_state, grad_x = to_last * grad_end + scores^T grad_o
inline HWY_NOINLINE void grad_x_rows(const ChunkSizes& sizes, const BackwardScratch& scratch,
                                     std::int64_t rows) {
  const ChunkScratch& chunk = scratch.chunk;
  for_panels(sizes.p, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      Tile<kVecs> tile;
      tile.clear();
      tile.accumulate(chunk.k + row * sizes.n_stride, sizes.n_stride, 1,
                      scratch.grad_state + column, sizes.p_stride, sizes.n);
      tile.store(scratch.grad_end + row * sizes.p_stride + column, sizes.p_stride);
      scale_rows(tile, chunk.to_last, chunk.row_token + row);
      const std::int64_t first = tile_first(sizes, chunk, row);
      tile.accumulate(chunk.scores + first * sizes.row_stride + row, 1, sizes.row_stride,
                      scratch.grad_o + first * sizes.p_stride + column, sizes.p_stride,
                      rows - first);
      tile.store(scratch.grad_x + row * sizes.p_stride + column, sizes.p_stride);
    }
  });
}

// grad_q = grad_o_start state^T + grad_scores k
inline HWY_NOINLINE void grad_q_rows(const ChunkSizes& sizes, const BackwardScratch& scratch,
                                     std::int64_t rows) {
  const ChunkScratch& chunk = scratch.chunk;
  for_panels(sizes.n, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      Tile<kVecs> tile;
      tile.clear();
      tile.accumulate(scratch.grad_o_start + row * sizes.p_stride, sizes.p_stride, 1,
                      scratch.state_t + column, sizes.n_stride, sizes.p);
      tile.accumulate(scratch.grad_scores + row * sizes.row_stride, sizes.row_stride, 1,
                      chunk.k + column, sizes.n_stride, tile_limit(chunk, row, rows));
      tile.store(scratch.grad_q + row * sizes.n_stride + column, sizes.n_stride);
    }
  });
}

// grad_k = x_state grad_state^T + grad_scores^T q
inline HWY_NOINLINE void grad_k_rows(const ChunkSizes& sizes, const BackwardScratch& scratch,
                                     std::int64_t rows) {
  const ChunkScratch& chunk = scratch.chunk;
  for_panels(sizes.n, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      Tile<kVecs> tile;
      tile.clear();
      tile.accumulate(chunk.x_state + row * sizes.p_stride, sizes.p_stride, 1,
                      scratch.grad_state_t + column, sizes.n_stride, sizes.p);
      const std::int64_t first = tile_first(sizes, chunk, row);
      tile.accumulate(scratch.grad_scores + first * sizes.row_stride + row, 1, sizes.row_stride,
                      chunk.q + first * sizes.n_stride + column, sizes.n_stride, rows - first);
      tile.store(scratch.grad_k + row * sizes.n_stride + column, sizes.n_stride);
    }
  });
}

// to [n, p] = decay * from + rows_n^T rows_p: the step of the state, and of its gradient. `to` may
// be `from`.
inline HWY_NOINLINE void fold_rows(const ChunkSizes& sizes, const float* rows_n,
                                   const float* rows_p, std::int64_t rows, float decay_of_chunk,
                                   const float* from, float* to) {
  const TileVec decay = hn::Set(TileTag(), decay_of_chunk);
  for_panels(sizes.p, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = 0; row < sizes.n; row += kTileRows) {
      Tile<kVecs> tile;
      tile.clear();
      tile.accumulate(rows_n + row, 1, sizes.n_stride, rows_p + column, sizes.p_stride, rows);
      tile.fold(decay, from + row * sizes.p_stride + column, sizes.p_stride);
      tile.store(to + row * sizes.p_stride + column, sizes.p_stride);
    }
  });
}

// out [rows, columns] = a b, for the few rows of a state's last token. a [rows, depth].
inline HWY_NOINLINE void plain_product(const float* a, std::int64_t a_stride, const float* b,
                                       std::int64_t b_stride, std::int64_t rows,
                                       std::int64_t columns, std::int64_t depth, float* out) {
  for_panels(columns, [&]<int kVecs>(std::int64_t column) HWY_ATTR {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
      Tile<kVecs> tile;
      tile.clear();
      tile.accumulate(a + row * a_stride, a_stride, 1, b + column, b_stride, depth);
      tile.store(out + row * b_stride + column, b_stride);
    }
  });
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard, once a target
