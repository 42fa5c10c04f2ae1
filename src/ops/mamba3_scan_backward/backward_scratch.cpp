#include <algorithm>

#include "ops/mamba3_scan_backward/backward_kernels.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kFloatBytes = sizeof(float);
// A slab is short enough that the states of its chunks are still near when the walk back needs
// them, and long enough that most sequences have few.
constexpr std::int64_t kMostSlabTokens = 512;
constexpr std::int64_t kMostRoundTokens = 4096;
// Memory of a round for what waits to be summed over heads, and for the sums of parameters.
constexpr std::int64_t kRoundBytes = std::int64_t{32} << 20;
constexpr std::int64_t kSumsBytes = std::int64_t{16} << 20;
constexpr std::int64_t kMostHeadsPerBlock = 4;
constexpr std::int64_t kLeastBlocks = 8;  // enough tasks for the threads of a large machine

// An odd number of cache lines, so that one token's rows of all blocks spread over the cache's
// sets.
std::int64_t spread_stride(std::int64_t floats) {
  constexpr std::int64_t kLineFloats = 16;
  return ((floats + kLineFloats - 1) / kLineFloats | 1) * kLineFloats;
}

std::int64_t heads_per_block(const Mamba3Dims& dims) {
  std::int64_t count = kMostHeadsPerBlock;
  while (count > 1 &&
         (dims.heads / dims.groups % count != 0 || dims.heads / count < kLeastBlocks)) {
    count /= 2;
  }
  return count;
}

}  // namespace

BackwardSizes::BackwardSizes(const Mamba3Dims& dims)
    : chunk(dims), heads_per_block(mamba3::heads_per_block(dims)) {
  blocks = dims.heads / heads_per_block;
  const std::int64_t token_bytes =
      blocks * (2 * dims.rank * dims.state + dims.angles) * kFloatBytes;
  const std::int64_t fit =
      std::min(kRoundBytes / token_bytes, kMostRoundTokens) / chunk.tokens * chunk.tokens;
  slab_tokens =
      std::min(std::max(fit, chunk.tokens), kMostSlabTokens / chunk.tokens * chunk.tokens);
  slab_chunks = slab_tokens / chunk.tokens;
  round_tokens = std::max(fit, slab_tokens);
  round_parts =
      std::max<std::int64_t>(1, kSumsBytes / (dims.heads * HeadSums::elements(dims) * kFloatBytes));
}

SlabBuffers::SlabBuffers(const Mamba3Dims& dims, const BackwardSizes& sizes, std::int64_t capacity,
                         std::int64_t chunks, Carver& carver)
    : tokens(dims, capacity, carver),
      row_stride(spread_stride(capacity * dims.rank * dims.state)),
      phase_stride(spread_stride(capacity * dims.angles)),
      grad_b(carver.take<float>(sizes.blocks * row_stride)),
      grad_c(carver.take<float>(sizes.blocks * row_stride)),
      grad_phase(carver.take<float>(sizes.blocks * phase_stride)),
      norm_sums(carver.take<float>(chunks * 2 * dims.state)) {}

StoredStates::StoredStates(const Mamba3Dims& dims, std::int64_t count, Carver& carver)
    : turns(carver.take<std::uint32_t>(count * dims.heads * dims.angles)),
      ssm(carver.take<float>(count * dims.heads * dims.state * dims.head_dim)),
      k(carver.take<float>(count * dims.rank * dims.heads * dims.state)) {}

std::int64_t HeadSums::elements(const Mamba3Dims& dims) {
  return 2 + 2 * dims.rank * dims.state + (dims.mimo ? 3 * dims.rank * dims.head_dim : 0) +
         (dims.out_norm ? dims.head_dim : 0);
}

HeadSums::HeadSums(const Mamba3Dims& dims, float* memory) {
  const auto take = [&memory](std::int64_t count) {
    float* begin = memory;
    memory += count;
    return begin;
  };
  const std::int64_t ranked = dims.mimo ? dims.rank * dims.head_dim : 0;
  dt_bias = take(1);
  skip = take(1);
  in_b_bias = take(dims.rank * dims.state);
  out_c_bias = take(dims.rank * dims.state);
  mimo_x = take(ranked);
  mimo_z = take(ranked);
  mimo_o = take(ranked);
  out_norm = take(dims.out_norm ? dims.head_dim : 0);
}

BackwardScratch::BackwardScratch(const Mamba3Dims& dims, const BackwardSizes& sizes, Carver& carver)
    : chunk(dims, sizes.chunk, false, carver) {
  const ChunkSizes& c = sizes.chunk;
  const std::int64_t padded_rows = c.rows + kRowPadding;
  const auto matrix = [&carver](std::int64_t rows, std::int64_t stride) {
    return carver.take<float>(rows * stride);
  };
  // A tile reads rows past the last one of it.
  chunk.x_state = matrix(padded_rows, c.p_stride);
  states = carver.take<float>(sizes.slab_chunks * c.state_elements);
  keys = matrix(sizes.slab_chunks * padded_rows, c.n_stride);
  rotations = carver.take<float>(sizes.slab_chunks * 2 * c.tokens * dims.angles);
  turns = carver.take<std::uint32_t>(dims.angles);
  decays = matrix(c.tokens, c.row_stride);
  raw_scores = matrix(padded_rows, c.row_stride);
  grad_scores = matrix(padded_rows, c.row_stride);
  x_t = matrix(c.p + kRowPadding, c.row_stride);
  from_start = matrix(padded_rows, c.p_stride);
  grad_o = matrix(padded_rows, c.p_stride);
  grad_o_start = matrix(padded_rows, c.p_stride);
  grad_end = matrix(padded_rows, c.p_stride);
  grad_x = matrix(padded_rows, c.p_stride);
  grad_q = matrix(padded_rows, c.n_stride);
  grad_k = matrix(padded_rows, c.n_stride);
  grad_state = carver.take<float>(c.state_elements);
  grad_state_t = matrix(c.p + kRowPadding, c.n_stride);
  state_t = matrix(c.p + kRowPadding, c.n_stride);
  later = carver.take<float>(c.row_stride);
  end = carver.take<float>(c.row_stride);
  phase = carver.take<float>(dims.angles);
  log_inside = carver.take<double>(c.tokens);
  log_start = carver.take<double>(c.tokens);
  now = carver.take<double>(c.tokens);
}

}  // namespace mamba3
