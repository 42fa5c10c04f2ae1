// Two products with our own gemm_f32: grad_x = grad_y w and grad_w += grad_y^T x. It wants its
// right factor in panels and its left one in rows, so a block of the depth is rewritten for both
// (the weights so, widened; grad_y turned over) before the tiles of the result are the tasks.
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

// A multiple of what gemm_f32 sums in one chain, so that sums do not depend on it.
constexpr std::int64_t kBlockDepth = 1152;
constexpr std::int64_t kTileRows = 192;
constexpr std::int64_t kTileColumns = 256;  // a multiple of a panel's
constexpr std::int64_t kPackRows = 64;      // a task of rewriting
// Rows of the rewritten left factor: never a power of two apart.
constexpr std::int64_t kRowPadding = 16;

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
  std::int64_t block() const { return std::min(depth, kBlockDepth); }
  std::int64_t copy_stride() const { return block() + kRowPadding; }
  std::int64_t copy_elements() const { return copies_a() ? m * copy_stride() : 0; }
  std::int64_t panel_elements() const { return divide_up(n, kGemmPanel) * kGemmPanel * block(); }
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
      for (; at + kGemmPanel <= p.n; at += kGemmPanel) {
        copy_numbers(from + at * bytes, p.b_dtype, p.rounded, kGemmPanel, to + at * depth);
      }
      copy_numbers(from + at * bytes, p.b_dtype, p.rounded, p.n - at, to + at * depth);
    }
  });
}

// Columns [first, first + depth) of a as rows.
void pack_a(const Product& p, std::int64_t first, std::int64_t depth, float* out, Context& ctx) {
  const std::int64_t stride = p.copy_stride();
  ctx.pool().run(divide_up(p.m, kPackRows), [&](std::int64_t task, int) {
    const std::int64_t begin = task * kPackRows;
    const std::int64_t end = std::min(p.m, begin + kPackRows);
    if (p.a_turned) {
      const auto* from = reinterpret_cast<const std::byte*>(p.a + first * p.a_stride + begin);
      transpose_f32({from, DType::kF32, depth, end - begin, p.a_stride}, p.rounded,
                    out + begin * stride, stride);
      return;
    }
    for (std::int64_t row = begin; row < end; ++row) {
      round_through_bf16(p.a + row * p.a_stride + first, depth, out + row * stride);
    }
  });
}

// One block of the depth.
void multiply_block(const Product& p, std::int64_t first, float* copy, float* panels,
                    Context& ctx) {
  const std::int64_t depth = std::min(kBlockDepth, p.depth - first);
  pack_b(p, first, depth, panels, ctx);
  if (p.copies_a()) pack_a(p, first, depth, copy, ctx);
  const float* a = p.copies_a() ? copy : p.a + first;
  const std::int64_t a_stride = p.copies_a() ? p.copy_stride() : p.a_stride;
  const std::int64_t column_tiles = divide_up(p.n, kTileColumns);
  ctx.pool().run(divide_up(p.m, kTileRows) * column_tiles, [&](std::int64_t task, int) {
    const std::int64_t row = task / column_tiles * kTileRows;
    const std::int64_t column = task % column_tiles * kTileColumns;
    GemmF32Args gemm;
    gemm.x = a + row * a_stride;
    gemm.x_stride = a_stride;
    gemm.w = panels + column * depth;
    gemm.y = p.out + row * p.out_stride + column;
    gemm.y_stride = p.out_stride;
    gemm.m = std::min(kTileRows, p.m - row);
    gemm.n = std::min(kTileColumns, p.n - column);
    gemm.k = depth;
    gemm.accumulate = p.accumulate || first > 0;
    gemm_f32(gemm);
  });
}

void multiply(const Product& p, Context& ctx) {
  if (p.depth == 0 && !p.accumulate) {  // sums of nothing
    for (std::int64_t row = 0; row < p.m; ++row) std::fill_n(p.out + row * p.out_stride, p.n, 0.0f);
  }
  if (p.m == 0 || p.n == 0) return;
  ArenaScope scope(ctx.workspace());
  auto* copy = scope.allocate<float>(p.copy_elements());
  auto* panels = scope.allocate<float>(p.panel_elements());
  for (std::int64_t first = 0; first < p.depth; first += kBlockDepth) {
    multiply_block(p, first, copy, panels, ctx);
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

std::size_t workspace_bytes(const Product& p) {
  return static_cast<std::size_t>(p.copy_elements() + p.panel_elements()) * sizeof(float) +
         2 * Arena::kAlignBytes;
}

}  // namespace

std::size_t linear_backward_workspace_bytes_cpu(const LinearBackwardArgs& args) {
  std::size_t bytes = 0;  // one product after the other
  if (args.grad_x.data != nullptr) bytes = workspace_bytes(grad_x_product(args));
  if (args.grad_w.data != nullptr) {
    bytes = std::max(bytes, workspace_bytes(grad_w_product(args)));
  }
  return bytes;
}

void linear_backward_cpu(const LinearBackwardArgs& args, Context& ctx) {
  if (args.grad_x.data != nullptr) multiply(grad_x_product(args), ctx);
  if (args.grad_w.data != nullptr) multiply(grad_w_product(args), ctx);
}

}  // namespace mamba3
