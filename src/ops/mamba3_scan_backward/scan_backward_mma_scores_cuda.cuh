// The scores of a chunk and their gradients, with their weights, and what these are to the
// gradients of a token's numbers. Notation: docs/SEMANTICS.md, section 9.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_products_cuda.cuh"

namespace mamba3 {
namespace {

constexpr unsigned kScoreTiles = kRowTiles * (kRowTiles + 1) / 2;  // on and below the diagonal

// A tile of 16 by 16: a thread has rows lane / 4 and 8 further, of columns lane % 4 * 2 and the
// next, and 8 further.
template <class S>
struct ScoreTile {
  BackwardMemory<S>& m;
  const ChunkDecays<S>& decays;
  unsigned row;  // of tiles
  unsigned column;
  unsigned lane;
  Sums<1> scores;  // S = Q K^T
  Sums<1> grads;   // dP = dO X^T

  __device__ __forceinline__ ScoreTile(BackwardMemory<S>& memory, const ChunkDecays<S>& own_decays,
                                       unsigned row_in, unsigned column_in, unsigned lane_in)
      : m(memory), decays(own_decays), row(row_in), column(column_in), lane(lane_in) {
    clear<1>(scores);
    clear<1>(grads);
    const Factor q(m, m.q, lane), k(m, m.k, lane), grad_o(m, m.grad_o, lane), x(m, m.x, lane);
    const unsigned from = 16 * row, to = 16 * column;
    multiply<S::kStateSteps, 1>(
        0, S::kStateSteps, [&](int step, auto& a) { q.left(from, 16 * step, a); },
        [&](int step, int, auto& b) { k.right_transposed(to, 16 * step, b); }, scores);
    multiply<kRowTiles, 1>(
        0, kRowTiles, [&](int step, auto& a) { grad_o.left(from, 16 * step, a); },
        [&](int step, int, auto& b) { x.right_transposed(to, 16 * step, b); }, grads);
  }

  // To sums over rows and columns, and to the weighted matrices.
  template <bool kDiagonal>
  __device__ __forceinline__ void finish() {
    float row_sums[2] = {}, column_sums[4] = {};
    each<kDiagonal>([&](int i, int j, int e, bool earlier, bool own, float decay,
                        const TokenTerms& of_row, const TokenTerms& of_column) {
      float& score = scores[j][2 * i + e];
      float& grad = grads[j][2 * i + e];
      const float product = score * grad;  // of T
      const float decayed = earlier ? product * decay : 0.0f;
      column_sums[2 * j + e] += decayed;
      // On the diagonal, of the token itself.
      row_sums[i] += kDiagonal ? (own ? product : 0.0f) : decayed * of_column.fill;
      const float weight = earlier ? decay * of_column.fill : of_row.now;
      score = earlier || own ? score * weight : 0.0f;
      grad = earlier || own ? grad * weight : 0.0f;
    });
    store(m.scores, scores);
    store(m.grad_scores, grads);
    tell_columns(column_sums);
    tell_rows(row_sums, kDiagonal ? m.now : m.row_sums[column]);
  }

  // Of a tile on the diagonal: for each token, what rows from its first on read of columns before.
  __device__ __forceinline__ void finish_inside() const {
    constexpr int kBorders = 16 / S::kRank;
    float products[2][4];  // of T and W
    each<true>([&](int i, int j, int e, bool earlier, bool, float decay, const TokenTerms&,
                   const TokenTerms& of_column) {
      const float product = scores[j][2 * i + e] * grads[j][2 * i + e];
      products[j][2 * i + e] = earlier ? product * decay * of_column.fill : 0.0f;
    });
    float sums[kBorders];
#pragma unroll
    for (int token = 0; token < kBorders; ++token) {
      const unsigned border = token * S::kRank;
      sums[token] = 0;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          // A thread's upper row is one of the first eight, and so are its left columns.
          const bool upper = e < 2, left = j == 0;
          if (border == 0 || (upper && border >= 8) || (!left && (upper || border <= 8))) continue;
          const bool below = (!upper && border <= 8) || lane / 4 + 8 * (e / 2) >= border;
          const bool before = (left && border >= 8) || column_of(j, e % 2) < border;
          if (below && before) sums[token] += products[j][e];
        }
      }
    }
    sum_lanes<16, 1, kBorders>(sums, lane);
    if (tells<16, 1, kBorders>(lane)) {
      m.inside[kBorders * row + first_of_lane<16, 1, kBorders>(lane)] = sums[0];
    }
  }

 private:
  // Calls f(row, eighth and neighbour among the columns, whether the column's token is earlier or
  // the row's own, the decay between them, both tokens' terms).
  template <bool kDiagonal, class F>
  __device__ __forceinline__ void each(const F& f) const {
    const TokenTerms rows[2] = {decays.terms[row_token(0)], decays.terms[row_token(1)]};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const unsigned token = (16 * column + column_of(j, e)) / S::kRank;
        const TokenTerms terms = decays.terms[token];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          // On the diagonal, left columns are before lower rows and right ones behind upper rows.
          const bool beside = kDiagonal && i == j;
          const unsigned of_column = (lane % 4 * 2 + e) / S::kRank;
          const unsigned of_row = lane / 4 / S::kRank;
          const bool earlier = !kDiagonal || i > j || (beside && of_column < of_row);
          const float decay = earlier ? fast_exp2((rows[i].decay_high - terms.decay_high) +
                                                  (rows[i].decay_low - terms.decay_low))
                                      : 0.0f;
          f(i, j, e, earlier, beside && of_column == of_row, decay, rows[i], terms);
        }
      }
    }
  }

  __device__ __forceinline__ unsigned row_token(int i) const {
    return (16 * row + lane / 4 + 8 * i) / S::kRank;
  }
  __device__ __forceinline__ unsigned column_of(int j, int e) const {
    return 8 * j + lane % 4 * 2 + e;
  }
  __device__ __forceinline__ void store(unsigned char* to, const Sums<1>& from) const {
    const unsigned byte = tile_byte(16 * row + lane / 4, 16 * column + column_of(0, 0));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        put_tile_pair(to, further(byte, 8 * i, j), from[j][2 * i], from[j][2 * i + 1]);
      }
    }
  }
  __device__ __forceinline__ void tell_rows(float (&sums)[2], float* to) const {
    sum_lanes<2, 1, 2>(sums, lane);
    if (tells<2, 1, 2>(lane)) to[16 * row + lane / 4 + 8 * first_of_lane<2, 1, 2>(lane)] = sums[0];
  }
  __device__ __forceinline__ void tell_columns(float (&sums)[4]) const {
    sum_lanes<16, 4, 4>(sums, lane);
    const int own = first_of_lane<16, 4, 4>(lane);
    if (tells<16, 4, 4>(lane)) {
      m.column_sums[row][16 * column + column_of(own / 2, own % 2)] = sums[0];
    }
  }
};

// A warp takes a tile on or below the diagonal, or what else comes of one on it.
template <class S>
__device__ __forceinline__ void make_scores(const MmaPlace& at, const ChunkDecays<S>& decays,
                                            BackwardMemory<S>& m) {
  if (at.warp < kRowTiles) {
    ScoreTile<S>(m, decays, at.warp, at.warp, at.lane).template finish<true>();
  } else if (at.warp < kScoreTiles) {
    unsigned row = 1, first = kRowTiles;
    while (first + row <= at.warp) first += row++;
    ScoreTile<S>(m, decays, row, at.warp - first, at.lane).template finish<false>();
  } else if (at.warp < kScoreTiles + kRowTiles) {
    const unsigned row = at.warp - kScoreTiles;
    ScoreTile<S>(m, decays, row, row, at.lane).finish_inside();
  }
}

}  // namespace
}  // namespace mamba3
