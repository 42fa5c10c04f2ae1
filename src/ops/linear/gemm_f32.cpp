#include "ops/linear/gemm_f32.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/gemm_f32.cpp"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/simd/unroll.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// A block of x [kBlockRows, kGemmDepth] waits in the second-level cache while the panels pass by, a
// panel's [kGemmDepth, kGemmPanel] in the first-level cache while the rows do.
constexpr std::int64_t kBlockRows = 96;

using D = hn::CappedTag<float, kGemmPanel>;
using V = hn::Vec<D>;
constexpr std::int64_t kLanes = static_cast<std::int64_t>(hn::MaxLanes(D()));
// 12 sums: in pairs where vectors are half a panel, 12 rows of them where they are a whole one.
#if HWY_MAX_BYTES >= 64
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVecs = kLanes >= kGemmPanel ? 1 : 2;
constexpr std::int64_t kTileColumns = kTileVecs * kLanes;
// Rows of x a multiple of this apart share a set of the first-level cache, and so its few places.
constexpr std::int64_t kSetStride = 4096 / sizeof(float);
constexpr int kSetPlaces = 8;
constexpr std::int64_t kSpreadStride = kGemmDepth + kGemmPanel;

// Where a tile reads and writes.
struct TileArgs {
  const float* x;
  std::int64_t x_stride;
  const float* w;
  std::int64_t depth;
  bool first;  // of the sums that make up y
  float* y;
  std::int64_t y_stride;
};

// Some rows of x times kTileColumns of a panel.
template <int kRows>
HWY_INLINE void tile(const TileArgs& args) {
  const D d;
  V sums[kRows][kTileVecs];
  const float* x[kRows];
  MAMBA3_UNROLL
  for (int i = 0; i < kRows; ++i) {
    x[i] = args.x + i * args.x_stride;
    hwy::Prefetch(args.y + i * args.y_stride);
    MAMBA3_UNROLL
    for (int v = 0; v < kTileVecs; ++v) sums[i][v] = hn::Zero(d);
  }
  const float* w = args.w;
  MAMBA3_UNROLL_BY_4
  for (std::int64_t k = 0; k < args.depth; ++k, w += kGemmPanel) {
    V of_w[kTileVecs];
    MAMBA3_UNROLL
    for (int v = 0; v < kTileVecs; ++v) of_w[v] = hn::LoadU(d, w + v * kLanes);
    MAMBA3_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const V of_x = hn::Set(d, x[i][k]);
      MAMBA3_UNROLL
      for (int v = 0; v < kTileVecs; ++v) sums[i][v] = hn::MulAdd(of_x, of_w[v], sums[i][v]);
    }
  }
  MAMBA3_UNROLL
  for (int i = 0; i < kRows; ++i) {
    float* y = args.y + i * args.y_stride;
    MAMBA3_UNROLL
    for (int v = 0; v < kTileVecs; ++v) {
      if (!args.first) sums[i][v] = hn::Add(hn::LoadU(d, y + v * kLanes), sums[i][v]);
      hn::StoreU(sums[i][v], d, y + v * kLanes);
    }
  }
}

template <int kRows>
HWY_INLINE void tile_of_rows(std::int64_t rows, const TileArgs& args) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of_rows<kRows - 1>(rows, args);
  }
  tile<kRows>(args);
}

// A tile that sticks out of y on its right is made beside it.
void tile_at_edge(std::int64_t rows, std::int64_t columns, TileArgs args) {
  float sums[kTileRows * kTileColumns];
  float* const y = args.y;
  const std::int64_t y_stride = args.y_stride;
  const bool first = args.first;
  args.y = sums;
  args.y_stride = kTileColumns;
  args.first = true;
  tile_of_rows<kTileRows>(rows, args);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) {
      const float sum = sums[i * kTileColumns + j];
      y[i * y_stride + j] = first ? sum : y[i * y_stride + j] + sum;
    }
  }
}

// What a block's products read and write: rows of x from one on, kGemmDepth of k at most.
struct Block {
  const float* x;
  std::int64_t x_stride;
  std::int64_t row, rows;  // of y
  std::int64_t k, depth;
};

// kTileColumns of y.
void column_of_tiles(const GemmF32Args& args, const Block& block, std::int64_t column) {
  TileArgs at;
  at.x_stride = block.x_stride;
  at.w = args.w + column / kGemmPanel * args.w_stride + block.k * kGemmPanel + column % kGemmPanel;
  at.depth = block.depth;
  at.first = block.k == 0 && !args.accumulate;
  at.y_stride = args.y_stride;
  const std::int64_t columns = args.n - column;
  for (std::int64_t row = 0; row < block.rows; row += kTileRows) {
    const std::int64_t rows = std::min<std::int64_t>(kTileRows, block.rows - row);
    at.x = block.x + row * block.x_stride;
    at.y = args.y + (block.row + row) * args.y_stride + column;
    if (columns < kTileColumns) {
      tile_at_edge(rows, columns, at);
    } else {
      tile_of_rows<kTileRows>(rows, at);
    }
  }
}

// Moves a block's rows of x to where they have places of their own.
void spread_rows(Block& block, float* to) {
  for (std::int64_t row = 0; row < block.rows; ++row) {
    std::copy_n(block.x + row * block.x_stride, block.depth, to + row * kSpreadStride);
  }
  block.x = to;
  block.x_stride = kSpreadStride;
}

}  // namespace

void multiply(const GemmF32Args& args) {
  const bool spread = kTileRows > kSetPlaces && args.x_stride % kSetStride == 0;
  HWY_ALIGN float rows_of_x[kTileRows > kSetPlaces ? kBlockRows * kSpreadStride : 1];
  for (std::int64_t begin = 0; begin < args.m; begin += kBlockRows) {
    for (std::int64_t k = 0; k < args.k; k += kGemmDepth) {
      Block block{args.x + begin * args.x_stride + k,
                  args.x_stride,
                  begin,
                  std::min(kBlockRows, args.m - begin),
                  k,
                  std::min(kGemmDepth, args.k - k)};
      if (spread) spread_rows(block, rows_of_x);
      for (std::int64_t column = 0; column < args.n; column += kTileColumns) {
        column_of_tiles(args, block, column);
      }
    }
  }
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

HWY_EXPORT(multiply);

}  // namespace

void gemm_f32(const GemmF32Args& args) {
  HWY_DYNAMIC_DISPATCH(multiply)(args);
}

}  // namespace mamba3
#endif  // HWY_ONCE
