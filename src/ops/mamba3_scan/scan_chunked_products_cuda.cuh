// The state and the scores of the chunked scan in the accumulators of a warpgroup: how they come
// there and leave, and what happens to them between products.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_gates_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kAccumulators = 32;  // of a thread, in a product of 64 by 64
constexpr int kColumnSteps = 8;    // of eight columns each

// Which rows and columns of a 64 by 64 product this thread has: rows `row` and `row` + 8, columns
// 8 j + `column` and the next, in d[4 j], d[4 j + 1] and d[4 j + 2], d[4 j + 3].
struct Fragment {
  unsigned row;
  unsigned column;
  __device__ Fragment()
      : row(threadIdx.x % kGroupThreads / kWarpLanes * 16 + threadIdx.x % kWarpLanes / 4),
        column(threadIdx.x % 4 * 2) {}
  // See forget_lane.
  __device__ __forceinline__ void forget() { asm volatile("" : "+r"(row), "+r"(column)); }
};

template <class S>
using State = float[S::kTiles][kAccumulators];  // [p, n] transposed products: rows are p

// Calls f(number of the state, its place in memory) for all that the thread has. What
// canonical_place says grows evenly with the number of the columns' step.
template <class S, class F>
__device__ __forceinline__ void for_each_of_state(const ChunkedScanJob& job, const Fragment& own,
                                                  float* ssm, const F& f) {
  const auto place = [&](int at) { return ssm + canonical_place(job.sizes, at) * kChunkHeadDim; };
  const auto column = static_cast<int>(own.column);
  const std::int64_t step = place(8) - place(0);
  const std::int64_t neighbour = place(1) - place(0);
  float* at = place(column) + own.row;
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < kColumnSteps; ++j, at += step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        f(tile, 4 * j + 2 * half, at[8 * half]);
        f(tile, 4 * j + 2 * half + 1, at[neighbour + 8 * half]);
      }
    }
  }
}

template <class S>
__device__ __forceinline__ void load_state(const ChunkedScanJob& job, const Fragment& own,
                                           float* ssm, State<S>& h) {
  for_each_of_state<S>(job, own, ssm,
                       [&h](int tile, int i, const float& from) { h[tile][i] = from; });
}

template <class S>
__device__ __forceinline__ void store_state(const ChunkedScanJob& job, const Fragment& own,
                                            const State<S>& h, float* ssm) {
  for_each_of_state<S>(job, own, ssm, [&h](int tile, int i, float& to) { to = h[tile][i]; });
}

// The share of the token before: h += weight * sum of X K^T over ranks, in fp32.
template <class S>
__device__ __forceinline__ void add_before(const ChunkMemory<S>& m, const TokenBefore<S>& before,
                                           float weight, const Fragment& own, State<S>& h) {
#pragma unroll
  for (int r = 0; r < S::kRank; ++r) {
    const float x[2] = {weight * (before.x[own.row] * m.mimo_x[r][own.row]),
                        weight * (before.x[own.row + 8] * m.mimo_x[r][own.row + 8])};
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < kColumnSteps; ++j) {
        const float2 k = before.k[r][(tile * kTileColumns + 8 * j + own.column) / 2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* to = &h[tile][4 * j + 2 * half];
          to[0] = fmaf(x[half], k.x, to[0]);
          to[1] = fmaf(x[half], k.y, to[1]);
        }
      }
    }
  }
}

// The state as products read it.
template <class S>
__device__ __forceinline__ void show_state(unsigned lane, const Fragment& own, const State<S>& h,
                                           ChunkStage<S>& stage) {
  // A lane says where a row of eight columns goes: rows 0 to 15 of two steps of columns.
  const std::uint32_t place =
      shared_address(stage.tiles[0].h) + swizzled(own.row / 16 * 16 + lane % 16, lane / 16 * 8);
  for_each_number<S::kTiles>([&](auto tile) {
    constexpr int kTile = decltype(tile)::value;
#pragma unroll
    for (int j = 0; j < kColumnSteps; j += 2) {
      const float* from = &h[kTile][4 * j];
      store_matrices<kTile * kNextTile>(
          at_piece(place, j), make_uint4(pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]),
                                         pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7])));
    }
  });
}

// Q K^T and Q h^T over n.
template <class S>
__device__ __forceinline__ void multiply_rows(const ChunkStage<S>& stage,
                                              float (&d)[2][kAccumulators]) {
  const std::uint64_t q = wgmma_operand(shared_address(stage.tiles[0].q));
  const std::uint64_t k_and_h = wgmma_operand(shared_address(stage.tiles[0].k));
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_k16(d, wgmma_further(q, tile * kNextTile + step * 32),
                wgmma_further(k_and_h, tile * kNextTile + step * 32), tile + step > 0);
    }
  }
}

// Tokens whose decays a thread needs: one or two of rows, and of each 16 columns one to four.
template <class S>
struct Weights {
  static constexpr int kRowTokens = S::kRank == 1 ? 2 : 1;
  static constexpr int kColumnTokens = S::kRank == 1 ? 4 : S::kRank == 2 ? 2 : 1;

  static __device__ __forceinline__ unsigned row_token(const Fragment& own, unsigned half) {
    if (S::kRank == 1) return own.row + 8 * half;
    if (S::kRank == 2) return own.row / 16 * 8 + own.row % 8;
    return own.row / 16 * 4 + own.row % 8 / 2;
  }
  // `i`: which of the thread's columns among the 16 with number `group`.
  static __device__ __forceinline__ unsigned column_token(const Fragment& own, unsigned group,
                                                          unsigned i) {
    if (S::kRank == 1) return 16 * group + i / 2 * 8 + own.column + i % 2;
    if (S::kRank == 2) return 8 * group + own.column + i;
    return 4 * group + own.column / 2;
  }
  static __device__ __forceinline__ int column_index(int j, int e) {
    return S::kRank == 1 ? 2 * j + e : S::kRank == 2 ? e : 0;
  }
};

// Of the thread's scores: of each group of 16 columns those of its tokens.
template <class S>
using ScoreWeights = float[4][Weights<S>::kRowTokens][Weights<S>::kColumnTokens];

// What is later than a row counts for nothing.
template <class S>
__device__ __forceinline__ void make_score_weights(const ChunkWeights<S>& of_chunk,
                                                   const Fragment& own, ScoreWeights<S>& out) {
  using W = Weights<S>;
  TokenTerms rows[W::kRowTokens];
#pragma unroll
  for (int i = 0; i < W::kRowTokens; ++i) rows[i] = of_chunk.terms[W::row_token(own, i)];
#pragma unroll
  for (unsigned group = 0; group < 4; ++group) {
#pragma unroll
    for (int c = 0; c < W::kColumnTokens; ++c) {
      const unsigned token = W::column_token(own, group, c);
      const TokenTerms column = of_chunk.terms[token];
#pragma unroll
      for (int i = 0; i < W::kRowTokens; ++i) {
        const unsigned row = W::row_token(own, i);
        const float weight = token < row ? pair_weight(rows[i], column) : 0.0f;
        out[group][i][c] = token == row ? rows[i].now : weight;
      }
    }
  }
}

// The scores with their weights, as the next product takes them.
template <class S>
__device__ __forceinline__ void weigh_scores(const ScoreWeights<S>& weights,
                                             const float (&scores)[kAccumulators],
                                             std::uint32_t (&out)[4][4]) {
  using W = Weights<S>;
#pragma unroll
  for (int group = 0; group < 4; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&row)[W::kColumnTokens] = weights[group][W::kRowTokens == 2 ? i % 2 : 0];
      const float* from = &scores[8 * group + 2 * i];
      out[group][i] = pack_bf16(row[W::column_index(i / 2, 0)] * from[0],
                                row[W::column_index(i / 2, 1)] * from[1]);
    }
  }
}

}  // namespace
}  // namespace mamba3
