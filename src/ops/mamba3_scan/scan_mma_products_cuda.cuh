// The four products of a chunk in the scan by mma.sync. A warp has 16 columns of the head: of the
// state, in fp32, and of the read-outs of all rows.
#pragma once

#include <cstdint>

#include "device/mma.cuh"
#include "ops/mamba3_scan/scan_mma_memory_cuda.cuh"

namespace mamba3 {
namespace {

// h [p, n]: rows are columns of the head, so that a thread's numbers are factors of Q h^T as they
// are.
template <class S>
using MmaState = float[S::kState / 8][4];
// O [row, p]: by 16 rows, and by eight columns.
template <class S>
using MmaReadOut = float[S::kRowSteps][2][4];

// Calls f(number of the state, its place in memory) for all that exist of the thread's.
template <class S, class F>
__device__ __forceinline__ void for_each_of_state(const MmaScanJob& job, const MmaPlace& at,
                                                  MmaState<S>& h, const F& f) {
  const TokenSizes& sizes = job.sizes;
  float* ssm = job.states.ssm + at.slot * job.states.ssm_stride +
               std::int64_t{at.head} * sizes.state * sizes.head_dim;
  const int column = at.warp_column() + static_cast<int>(at.lane / 4);
#pragma unroll
  for (int j = 0; j < S::kState / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int n = 8 * j + static_cast<int>(at.lane % 4) * 2 + e;
      if (n >= sizes.state) continue;
      float* row = ssm + std::int64_t{place_of(sizes, n)} * sizes.head_dim;
      if (column < sizes.head_dim) f(h[j][e], row[column]);
      if (column + 8 < sizes.head_dim) f(h[j][2 + e], row[column + 8]);
    }
  }
}

// The share of the token before a stretch: h += weight * sum of X K^T over ranks, in fp32.
template <class S>
__device__ __forceinline__ void add_kept(const MmaScanJob& job, const MmaPlace& at, float weight,
                                         MmaMemory<S>& m, MmaState<S>& h) {
  const unsigned own = at.warp * kWarpColumns + at.lane / 4;
  for (int r = 0; r < S::rank(job); ++r) {
    float x[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      x[i] = weight * (m.kept_x[own + 8 * i] * m.rank(r).mimo_x[own + 8 * i]);
    }
    const float2* k = m.rank(r).kept_k + at.lane % 4;
#pragma unroll
    for (int j = 0; j < S::kState / 8; ++j) {
      const float2 pair = k[4 * j];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        h[j][2 * i] = fmaf(x[i], pair.x, h[j][2 * i]);
        h[j][2 * i + 1] = fmaf(x[i], pair.y, h[j][2 * i + 1]);
      }
    }
  }
}

// One number of Q K^T with its weight; what is later counts for nothing, whatever it is.
__device__ __forceinline__ float weighted(float score, unsigned row_token, unsigned column_token,
                                          const TokenTerms& row, const TokenTerms& column) {
  if (column_token > row_token) return 0;
  return score * (column_token == row_token ? row.now : pair_weight(row, column));
}

// 16 by 16 scores with their weights, as the next product takes them.
template <class S>
__device__ __forceinline__ void score_tile(const MmaScanJob& job, const MmaPlace& at, unsigned row,
                                           unsigned column, MmaMemory<S>& m) {
  float scores[2][4] = {};
  const std::uint32_t q =
      shared_address(m.q) + row * S::kStateRow + rows_first(at.lane, S::kStateRow);
  const std::uint32_t k =
      shared_address(m.k) + column * S::kStateRow + columns_first(at.lane, S::kStateRow);
#pragma unroll
  for (int step = 0; step < S::kStateSteps; ++step) {
    std::uint32_t a[4], b[4];
    load_blocks(q + 32 * step, a);
    load_blocks(k + 32 * step, b);
    mma_k16(scores[0], a, b[0], b[1]);
    mma_k16(scores[1], a, b[2], b[3]);
  }
  row += at.lane / 4;
  column += at.lane % 4 * 2;
  unsigned row_tokens[2];
  TokenTerms rows[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    row_tokens[i] = (row + 8 * i) >> S::rank_bits(job);
    rows[i] = m.terms[row_tokens[i]];
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float out[4];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const unsigned token = (column + 8 * j + e) >> S::rank_bits(job);
      const TokenTerms terms = m.terms[token];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        out[2 * i + e] = weighted(scores[j][2 * i + e], row_tokens[i], token, rows[i], terms);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<std::uint32_t*>(m.scores + (row + 8 * i) * S::kScoreRow +
                                        2 * (column + 8 * j)) =
          pack_bf16(out[2 * i], out[2 * i + 1]);
    }
  }
}

// All scores on and below the diagonal; those above it nobody reads.
template <class S>
__device__ __forceinline__ void make_scores(const MmaScanJob& job, const MmaPlace& at,
                                            MmaMemory<S>& m) {
  constexpr unsigned kTiles = S::kRowSteps * (S::kRowSteps + 1) / 2;
  for (unsigned tile = at.warp; tile < kTiles; tile += kMmaWarps) {
    unsigned row = 0, first = 0;  // of tiles
    for (; first + row < tile; first += row) ++row;
    score_tile(job, at, 16 * row, 16 * (tile - first), m);
  }
}

// O = decayed Q h^T
template <class S>
__device__ __forceinline__ void read_state(const MmaScanJob& job, const MmaPlace& at,
                                           const MmaMemory<S>& m, const MmaState<S>& h,
                                           MmaReadOut<S>& o) {
#pragma unroll
  for (int i = 0; i < S::kRowSteps; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) o[i][0][e] = o[i][1][e] = 0;
  }
  const std::uint32_t q = shared_address(m.q) + rows_first(at.lane, S::kStateRow);
#pragma unroll
  for (int step = 0; step < S::kStateSteps; ++step) {
    const float(&left)[4] = h[2 * step];
    const float(&right)[4] = h[2 * step + 1];
    const std::uint32_t b[4] = {pack_bf16(left[0], left[1]), pack_bf16(right[0], right[1]),
                                pack_bf16(left[2], left[3]), pack_bf16(right[2], right[3])};
#pragma unroll
    for (int i = 0; i < S::kRowSteps; ++i) {
      std::uint32_t a[4];
      load_blocks(q + 16 * i * S::kStateRow + 32 * step, a);
      mma_k16(o[i][0], a, b[0], b[1]);
      mma_k16(o[i][1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < S::kRowSteps; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float decay = m.start_decay[(16 * i + 8 * half + at.lane / 4) >> S::rank_bits(job)];
#pragma unroll
      for (int e = 2 * half; e < 2 * half + 2; ++e) {
        o[i][0][e] *= decay;
        o[i][1][e] *= decay;
      }
    }
  }
}

__device__ __forceinline__ std::uint32_t faded(std::uint32_t pair, float2 fade) {
  float a;
  float b;
  unpack_bf16(pair, a, b);
  return pack_bf16(a * fade.x, b * fade.y);
}

// O += weighted scores X, and h = decay h + (faded X)^T K.
template <class S>
__device__ __forceinline__ void add_chunk(const MmaPlace& at, const MmaMemory<S>& m,
                                          MmaReadOut<S>& o, MmaState<S>& h) {
  const float decay = m.chunk_decay;
#pragma unroll
  for (int j = 0; j < S::kState / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) h[j][e] *= decay;
  }
  const std::uint32_t x =
      shared_address(m.x) + rows_first(at.lane, S::kColumnRow) + at.warp * (2 * kWarpColumns);
  const std::uint32_t scores = shared_address(m.scores) + rows_first(at.lane, S::kScoreRow);
  const std::uint32_t k = shared_address(m.k) + rows_first(at.lane, S::kStateRow);
#pragma unroll
  for (int step = 0; step < S::kRowSteps; ++step) {
    std::uint32_t own[4];  // X of 16 rows
    load_transposed(x + 16 * step * S::kColumnRow, own);
#pragma unroll
    for (int i = step; i < S::kRowSteps; ++i) {
      std::uint32_t a[4];
      load_blocks(scores + 16 * i * S::kScoreRow + 32 * step, a);
      mma_k16(o[i][0], a, own[0], own[1]);
      mma_k16(o[i][1], a, own[2], own[3]);
    }
    const auto* fade = reinterpret_cast<const float2*>(m.fade + 16 * step + at.lane % 4 * 2);
    const std::uint32_t a[4] = {faded(own[0], fade[0]), faded(own[2], fade[0]),
                                faded(own[1], fade[4]), faded(own[3], fade[4])};
#pragma unroll
    for (int j = 0; j < S::kStateSteps; ++j) {
      std::uint32_t b[4];
      load_transposed(k + 16 * step * S::kStateRow + 32 * j, b);
      mma_k16(h[2 * j], a, b[0], b[1]);
      mma_k16(h[2 * j + 1], a, b[2], b[3]);
    }
  }
}

}  // namespace
}  // namespace mamba3
