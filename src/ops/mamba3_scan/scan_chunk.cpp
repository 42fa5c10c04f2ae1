#include "ops/mamba3_scan/scan_chunk.h"

#include <algorithm>

#include "ops/mamba3_scan/carver.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kLineFloats = 16;
// Rows of a full chunk, by measurement: more of them spend more on scores, fewer more on passes
// over the state.
constexpr std::int64_t kChunkRows = 32;

std::int64_t padded_stride(std::int64_t columns) {
  const std::int64_t lines = (columns + kLineFloats - 1) / kLineFloats;
  return (lines | 1) * kLineFloats;
}

Bf16Scratch take_bf16_scratch(const ChunkSizes& sizes, Carver& carver) {
  const std::int64_t padded_rows = sizes.rows + kRowPadding;
  const std::int64_t n_pairs = (sizes.n + 1) / 2;
  const std::int64_t row_pairs = (sizes.rows + 1) / 2;
  Bf16Scratch out;
  out.n_pair_stride = padded_stride(n_pairs);
  out.row_pair_stride = padded_stride(row_pairs);
  out.q = carver.take<Bf16Pair>(padded_rows * out.n_pair_stride);
  out.k = carver.take<Bf16Pair>(n_pairs * sizes.row_stride);
  out.k_t = carver.take<Bf16Pair>((sizes.n + kRowPadding) * out.row_pair_stride);
  out.x = carver.take<Bf16Pair>(row_pairs * sizes.p_stride);
  out.x_state = carver.take<Bf16Pair>(row_pairs * sizes.p_stride);
  out.state = carver.take<Bf16Pair>(n_pairs * sizes.p_stride);
  const std::int64_t rank_pairs = (sizes.rank + 1) / 2;
  out.k_carried = carver.take<Bf16Pair>(rank_pairs * sizes.n_stride + kRowPadding);
  out.x_carried = carver.take<Bf16Pair>(rank_pairs * sizes.p_stride);
  out.scores = carver.take<Bf16Pair>(padded_rows * out.row_pair_stride);
  return out;
}

}  // namespace

ChunkSizes::ChunkSizes(const Mamba3Dims& dims)
    : rank(dims.rank),
      n(dims.state),
      p(dims.head_dim),
      tokens(std::max<std::int64_t>(1, kChunkRows / dims.rank)),
      rows(tokens * rank),
      n_stride(padded_stride(n)),
      p_stride(padded_stride(p)),
      row_stride(padded_stride(rows)),
      state_elements((n + kRowPadding) * p_stride) {}

ChunkScratch::ChunkScratch(const Mamba3Dims& dims, const ChunkSizes& sizes, bool bf16_products,
                           Carver& carver)
    : k_t(nullptr), x(nullptr), x_state(nullptr), scores(nullptr), bf16{} {
  const std::int64_t padded_rows = sizes.rows + kRowPadding;
  row_token = carver.take<std::int32_t>(sizes.row_stride + kRowPadding);
  row_limit = carver.take<std::int32_t>(sizes.row_stride + kRowPadding);
  sum_high = carver.take<float>(sizes.row_stride);
  sum_low = carver.take<float>(sizes.row_stride);
  source = carver.take<float>(sizes.row_stride);
  decay = carver.take<float>(sizes.tokens);
  to_last = carver.take<float>(sizes.tokens);
  turns = carver.take<std::uint32_t>(dims.angles);
  cosine = carver.take<float>(sizes.tokens * dims.angles);
  sine = carver.take<float>(sizes.tokens * dims.angles);
  k = carver.take<float>(padded_rows * sizes.n_stride);
  q = carver.take<float>(padded_rows * sizes.n_stride);
  k_carried = carver.take<float>(sizes.rank * sizes.n_stride + kRowPadding);
  x_carried = carver.take<float>(sizes.rank * sizes.p_stride);
  weights = carver.take<float>(sizes.tokens * sizes.row_stride);
  y = carver.take<float>(padded_rows * sizes.p_stride);
  state = carver.take<float>(sizes.state_elements);
  if (bf16_products) {
    bf16 = take_bf16_scratch(sizes, carver);
  } else {
    k_t = carver.take<float>((sizes.n + kRowPadding) * sizes.row_stride);
    x = carver.take<float>(sizes.rows * sizes.p_stride);
    x_state = carver.take<float>(sizes.rows * sizes.p_stride);
    scores = carver.take<float>(padded_rows * sizes.row_stride);
  }
}

}  // namespace mamba3
