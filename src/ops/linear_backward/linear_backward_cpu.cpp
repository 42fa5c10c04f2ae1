// Two products with our own gemm_f32: grad_x = grad_y w and grad_w += grad_y^T x. It wants its
// right factor in panels and its left one in rows. The right one (the weights, widened; x) is
// rewritten a block of the depth at a time, before the tiles of the result are the tasks; the left
// one, where it has to be (grad_y turned over), piece by piece by the task that multiplies it.
#include "ops/linear_backward/linear_backward_cpu.h"

#include <algorithm>
#include <cstring>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "ops/linear/gemm_f32.h"
#include "ops/linear/pack_weights.h"
#include "ops/linear/round_bf16.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kBlockDepth =
    3 * kGemmDepth;  // whole chains, so that sums do not depend on it
constexpr std::int64_t kTileRows = 96;
constexpr std::int64_t kTileColumns = 256;  // at least; a multiple of a panel's
constexpr std::int64_t kTasksPerThread = 4;
constexpr std::int64_t kPackRows = 64;  // a task of rewriting
// Behind the rows of the rewritten left factor and behind panels, which are never a power of two
// apart.
constexpr std::int64_t kPadding = 16;
constexpr std::int64_t kPieceStride = kGemmDepth + kPadding;

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// out [m, n] = or += a [m, depth] times b [depth, n].
struct Product {
  const float* a = nullptr;
  std::int64_t a_stride = 0;  // from row to row as it lies in memory
  bool a_turned = false;      // it lies there as [depth, m]
  const std::byte* b = nullptr;
  DType b_dtype = DType::kF32;
  std::int64_t b_stride = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  std::int64_t m = 0, n = 0, depth = 0;
  bool rounded = false;  // both factors, to bf16
  bool accumulate = false;

  bool copies_a() const { return a_turned || rounded; }
  std::int64_t panels() const { return divide_up(n, kGemmPanel); }
  std::int64_t panel_stride() const { return std::min(depth, kBlockDepth) * kGemmPanel + kPadding; }
  std::int64_t piece_elements() const { return copies_a() ? kTileRows * kPieceStride : 0; }
};

void copy_numbers(const std::byte* from, DType dtype, bool rounded, std::int64_t count, float* to) {
  if (dtype == DType::kF32 && rounded) {
    return round_through_bf16(reinterpret_cast<const float*>(from), count, to);
  }
  if (dtype == DType::kF32) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  const auto* narrow = reinterpret_cast<const Bf16*>(from);
  for (std::int64_t i = 0; i < count; ++i) to[i] = to_float(narrow[i]);
}

// Rows [first, first + depth) of b as gemm_f32's panels.
void pack_b(const Product& p, std::int64_t first, std::int64_t depth, float* panels, Context& ctx) {
  const std::int64_t bytes = dtype_bytes(p.b_dtype);
  ctx.pool().run(divide_up(depth, kPackRows), [&](std::int64_t task, int) {
    const std::int64_t end = std::min(depth, (task + 1) * kPackRows);
    for (std::int64_t row = task * kPackRows; row < end; ++row) {
      const std::byte* from = p.b + (first + row) * p.b_stride * bytes;
      float* to = panels + row * kGemmPanel;
      std::int64_t at = 0;
      for (; at + kGemmPanel <= p.n; at += kGemmPanel, to += p.panel_stride()) {
        copy_numbers(from + at * bytes, p.b_dtype, p.rounded, kGemmPanel, to);
      }
      copy_numbers(from + at * bytes, p.b_dtype, p.rounded, p.n - at, to);
    }
  });
}

// Some of the result, from one block of the depth.
struct Tile {
  std::int64_t row = 0, rows = 0;
  std::int64_t column = 0, columns = 0;
  std::int64_t first = 0, depth = 0;
};

// Columns [first, first + depth) of the tile's rows of a, as rows.
void copy_piece(const Product& p, const Tile& tile, std::int64_t first, std::int64_t depth,
                float* out) {
  if (p.a_turned) {
    const auto* from = reinterpret_cast<const std::byte*>(p.a + first * p.a_stride + tile.row);
    return transpose_f32({from, DType::kF32, depth, tile.rows, p.a_stride}, p.rounded, out,
                         kPieceStride);
  }
  for (std::int64_t i = 0; i < tile.rows; ++i) {
    round_through_bf16(p.a + (tile.row + i) * p.a_stride + first, depth, out + i * kPieceStride);
  }
}

// `piece`: memory of the worker.
void multiply_tile(const Product& p, const Tile& tile, const float* panels, float* piece) {
  GemmF32Args gemm;
  gemm.x = p.a + tile.row * p.a_stride + tile.first;
  gemm.x_stride = p.a_stride;
  gemm.w = panels + tile.column / kGemmPanel * p.panel_stride();
  gemm.w_stride = p.panel_stride();
  gemm.y = p.out + tile.row * p.out_stride + tile.column;
  gemm.y_stride = p.out_stride;
  gemm.m = tile.rows;
  gemm.n = tile.columns;
  gemm.k = tile.depth;
  gemm.accumulate = p.accumulate || tile.first > 0;
  if (!p.copies_a()) return gemm_f32(gemm);
  gemm.x = piece;
  gemm.x_stride = kPieceStride;
  for (std::int64_t k = 0; k < tile.depth; k += kGemmDepth) {
    gemm.k = std::min(kGemmDepth, tile.depth - k);
    copy_piece(p, tile, tile.first + k, gemm.k, piece);
    gemm_f32(gemm);
    gemm.w += kGemmDepth * kGemmPanel;
    gemm.accumulate = true;
  }
}

// Columns of a tile. All of them where each tile has to copy its piece of a, unless threads would
// wait for each other.
std::int64_t tile_columns(const Product& p, std::int64_t row_tiles, const Context& ctx) {
  if (!p.copies_a()) return kTileColumns;
  const std::int64_t count = divide_up(kTasksPerThread * ctx.threads(), row_tiles);
  return std::max(kTileColumns, divide_up(p.panels(), count) * kGemmPanel);
}

void multiply(const Product& p, Context& ctx) {
  if (p.depth == 0 && !p.accumulate) {  // sums of nothing
    for (std::int64_t row = 0; row < p.m; ++row) std::fill_n(p.out + row * p.out_stride, p.n, 0.0f);
  }
  if (p.m == 0 || p.n == 0) return;
  ArenaScope scope(ctx.workspace());
  auto* pieces = scope.allocate<float>(ctx.threads() * p.piece_elements());
  auto* panels = scope.allocate<float>(p.panels() * p.panel_stride());
  const std::int64_t row_tiles = divide_up(p.m, kTileRows);
  const std::int64_t width = tile_columns(p, row_tiles, ctx);
  const std::int64_t column_tiles = divide_up(p.n, width);
  for (std::int64_t first = 0; first < p.depth; first += kBlockDepth) {
    const std::int64_t depth = std::min(kBlockDepth, p.depth - first);
    pack_b(p, first, depth, panels, ctx);
    ctx.pool().run(row_tiles * column_tiles, [&](std::int64_t task, int worker) {
      const std::int64_t row = task / column_tiles * kTileRows;
      const std::int64_t column = task % column_tiles * width;
      multiply_tile(p,
                    {row, std::min(kTileRows, p.m - row), column, std::min(width, p.n - column),
                     first, depth},
                    panels, pieces + worker * p.piece_elements());
    });
  }
}

Product grad_x_product(const LinearBackwardArgs& args) {
  Product p;
  p.a = args.grad_y.floats();
  p.a_stride = args.grad_y.stride[0];
  p.b = args.w.data;
  p.b_dtype = args.w.dtype;
  p.b_stride = args.w.shape[1];
  p.out = args.grad_x.floats();
  p.out_stride = args.grad_x.stride[0];
  p.m = args.grad_y.shape[0];
  p.n = args.w.shape[1];
  p.depth = args.w.shape[0];
  p.rounded = args.compute == Compute::kBf16;
  return p;
}

Product grad_w_product(const LinearBackwardArgs& args) {
  Product p;
  p.a = args.grad_y.floats();
  p.a_stride = args.grad_y.stride[0];
  p.a_turned = true;
  p.b = reinterpret_cast<const std::byte*>(args.x.floats());
  p.b_stride = args.x.stride[0];
  p.out = args.grad_w.data;
  p.out_stride = args.grad_w.stride[0];
  p.m = args.w.shape[0];
  p.n = args.w.shape[1];
  p.depth = args.grad_y.shape[0];
  p.rounded = args.compute == Compute::kBf16;
  p.accumulate = args.accumulate_w;
  return p;
}

std::size_t workspace_bytes(const Product& p, const Context& ctx) {
  const std::int64_t floats = ctx.threads() * p.piece_elements() + p.panels() * p.panel_stride();
  return static_cast<std::size_t>(floats) * sizeof(float) + 2 * Arena::kAlignBytes;
}

}  // namespace

std::size_t linear_backward_workspace_bytes_cpu(const LinearBackwardArgs& args,
                                                const Context& ctx) {
  std::size_t bytes = 0;  // one product after the other
  if (args.grad_x.data != nullptr) bytes = workspace_bytes(grad_x_product(args), ctx);
  if (args.grad_w.data != nullptr) {
    bytes = std::max(bytes, workspace_bytes(grad_w_product(args), ctx));
  }
  return bytes;
}

void linear_backward_cpu(const LinearBackwardArgs& args, Context& ctx) {
  if (args.grad_x.data != nullptr) multiply(grad_x_product(args), ctx);
  if (args.grad_w.data != nullptr) multiply(grad_w_product(args), ctx);
}

}  // namespace mamba3
