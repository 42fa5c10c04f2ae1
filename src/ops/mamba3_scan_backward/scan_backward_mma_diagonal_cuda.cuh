// Scores of a chunk on the diagonal, and their gradients. Of a tile there the left half is one
// warp's; of the right half only the lower rows are not ahead of their columns, and two tiles' are
// another's. Notation: docs/SEMANTICS.md, section 9.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_products_cuda.cuh"

namespace mamba3 {
namespace {

// Weighs a score and its gradient, and has what their product adds to sums.
struct DiagonalProduct {
  float decayed;  // of T, by the decay
  float read;     // the same by W
  float own;      // of the token itself

  __device__ __forceinline__ DiagonalProduct(bool earlier, bool is_own, const TokenTerms& row,
                                             const TokenTerms& column, float& score, float& grad) {
    const float decay = earlier ? decay_between(row, column) : 0.0f;
    const float product = score * grad;
    decayed = earlier ? product * decay : 0.0f;
    read = earlier ? decayed * column.fill : 0.0f;
    own = is_own ? product : 0.0f;
    const float weight = earlier ? decay * column.fill : row.now;
    score = earlier || is_own ? score * weight : 0.0f;
    grad = earlier || is_own ? grad * weight : 0.0f;
  }
};

// S = Q K^T and dP = dO X^T of 16 rows by 16 columns, which are rows of Q and dO and of K and X:
// from `row` and `column` on, by what the lane adds to them.
template <class S>
__device__ __forceinline__ void multiply_scores(const BackwardMemory<S>& m, unsigned row,
                                                unsigned column, unsigned lane, Sums<1>& scores,
                                                Sums<1>& grads) {
  clear<1>(scores);
  clear<1>(grads);
  const Factor q(m, m.q, lane), k(m, m.k, lane), grad_o(m, m.grad_o, lane), x(m, m.x, lane);
  multiply<S::kStateSteps, 1>(
      0, S::kStateSteps, [&](int step, auto& a) { q.left(row, 16 * step, a); },
      [&](int step, int, auto& b) { k.right_transposed(column, 16 * step, b); }, scores);
  multiply<kRowTiles, 1>(
      0, kRowTiles, [&](int step, auto& a) { grad_o.left(row, 16 * step, a); },
      [&](int step, int, auto& b) { x.right_transposed(column, 16 * step, b); }, grads);
}

// A square of eight rows and as many columns on the diagonal: tokens do not reach over one. A
// thread has row lane / 4, columns lane % 4 * 2 and the next.
template <class S>
struct DiagonalSquare {
  static constexpr int kBorders = 8 / S::kRank;  // tokens, by their first rows
  unsigned row;
  unsigned column;

  __device__ __forceinline__ explicit DiagonalSquare(unsigned lane)
      : row(lane / 4), column(lane % 4 * 2) {}

  __device__ __forceinline__ bool is_earlier(unsigned e) const {
    return (column + e) / S::kRank < row / S::kRank;
  }
  __device__ __forceinline__ bool is_own(unsigned e) const {
    return (column + e) / S::kRank == row / S::kRank;
  }
  // Of the thread's products what is in rows from the token's first on, or in columns before it.
  __device__ __forceinline__ float from(int token, float value) const {
    return token == 0 || row >= token * S::kRank ? value : 0.0f;
  }
  __device__ __forceinline__ float before(int token, const float (&products)[2]) const {
    if (token == 0) return 0;
    const unsigned border = token * S::kRank;
    return (column < border ? products[0] : 0.0f) + (column + 1 < border ? products[1] : 0.0f);
  }
};

// All rows of a tile and its left columns: a square on the diagonal, and one below it.
template <class S>
struct DiagonalLeft {
  BackwardMemory<S>& m;
  const ChunkDecays<S>& decays;
  ChunkSums<S>& sums;
  unsigned tile;
  unsigned lane;
  float scores[4] = {};  // S = Q K^T, rows lane / 4 and 8 further
  float grads[4] = {};   // dP = dO X^T

  __device__ __forceinline__ DiagonalLeft(BackwardMemory<S>& memory, int parity, unsigned tile_in,
                                          unsigned lane_in)
      : m(memory),
        decays(memory.decays[parity]),
        sums(memory.sums[parity]),
        tile(tile_in),
        lane(lane_in) {
    const Factor q(m, m.q, lane), k(m, m.k, lane), grad_o(m, m.grad_o, lane), x(m, m.x, lane);
    multiply_eight<S::kStateSteps>(q, 16 * tile, k, 16 * tile, scores);
    multiply_eight<kRowTiles>(grad_o, 16 * tile, x, 16 * tile, grads);
  }

  // To sums over rows and columns, and to the weighted matrices.
  __device__ __forceinline__ void finish() {
    const DiagonalSquare<S> square(lane);
    float own_sum = 0, column_sums[2], read[2][2];  // [row, column]
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const TokenTerms& of_column = decays.terms[(16 * tile + square.column + e) / S::kRank];
      const TokenTerms* of_row = &decays.terms[(16 * tile + square.row) / S::kRank];
      const DiagonalProduct upper(square.is_earlier(e), square.is_own(e), of_row[0], of_column,
                                  scores[e], grads[e]);
      const DiagonalProduct lower(true, false, of_row[8 / S::kRank], of_column, scores[2 + e],
                                  grads[2 + e]);
      own_sum += upper.own;
      column_sums[e] = upper.decayed + lower.decayed;
      read[0][e] = upper.read;
      read[1][e] = lower.read;
    }
    store(m.scores, scores);
    store(m.grad_scores, grads);
    tell_columns(column_sums);
    sum_lanes<2, 1, 1>(&own_sum, lane);
    if (tells<2, 1, 1>(lane)) sums.now[16 * tile + square.row] = own_sum;
    tell_inside(square, read);
  }

 private:
  __device__ __forceinline__ void store(unsigned char* to, const float (&from)[4]) const {
    const unsigned byte = tile_byte(16 * tile + lane / 4, 16 * tile + lane % 4 * 2);
    put_tile_pair(to, byte, from[0], from[1]);
    put_tile_pair(to, further(byte, 8, 0), from[2], from[3]);
  }
  __device__ __forceinline__ void tell_columns(float (&of_columns)[2]) const {
    sum_lanes<16, 4, 2>(of_columns, lane);
    if (!tells<16, 4, 2>(lane)) return;
    const unsigned own = lane % 4 * 2 + first_of_lane<16, 4, 2>(lane);
    sums.between[tile][16 * tile + own] = of_columns[0];
  }
  // For each token of the tile, what rows from its first on read of left columns before it.
  __device__ __forceinline__ void tell_inside(const DiagonalSquare<S>& square,
                                              const float (&read)[2][2]) const {
    constexpr int kHalf = DiagonalSquare<S>::kBorders, kCount = 2 * kHalf;
    float of_tokens[kCount];
#pragma unroll
    for (int token = 0; token < kHalf; ++token) {
      of_tokens[token] =
          square.from(token, square.before(token, read[0])) + square.before(token, read[1]);
      of_tokens[kHalf + token] = square.from(token, read[1][0] + read[1][1]);
    }
    sum_lanes<16, 1, kCount>(of_tokens, lane);
    if (tells<16, 1, kCount>(lane)) {
      sums.inside[0][kCount * tile + first_of_lane<16, 1, kCount>(lane)] = of_tokens[0];
    }
  }
};

// Lower rows and right columns of two neighbouring tiles: as a tile of these 16 rows and columns,
// in which other squares than those on the diagonal are nobody's.
template <class S>
struct DiagonalRights {
  BackwardMemory<S>& m;
  const ChunkDecays<S>& decays;
  ChunkSums<S>& sums;
  unsigned tile;  // the first
  unsigned lane;
  Sums<1> scores;
  Sums<1> grads;

  __device__ __forceinline__ DiagonalRights(BackwardMemory<S>& memory, int parity, unsigned tile_in,
                                            unsigned lane_in)
      : m(memory),
        decays(memory.decays[parity]),
        sums(memory.sums[parity]),
        tile(tile_in),
        lane(lane_in) {
    // Eight rows lie between those of one tile and those of the next.
    const unsigned from = 16 * tile + 8 + lane % 16 / 8 * 8, to = 16 * tile + 8 + lane / 16 * 8;
    multiply_scores<S>(m, from, to, lane, scores, grads);
  }

  // To sums over rows and columns, and to the weighted matrices.
  __device__ __forceinline__ void finish() {
    const DiagonalSquare<S> square(lane);
    float own_sums[2] = {}, column_sums[4], read[2][2];  // [tile, column]
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const TokenTerms* terms = &decays.terms[(16 * (tile + i) + 8) / S::kRank];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const DiagonalProduct product(
            square.is_earlier(e), square.is_own(e), terms[square.row / S::kRank],
            terms[(square.column + e) / S::kRank], scores[i][2 * i + e], grads[i][2 * i + e]);
        own_sums[i] += product.own;
        column_sums[2 * i + e] = product.decayed;
        read[i][e] = product.read;
      }
    }
    store(m.scores, scores);
    store(m.grad_scores, grads);
    tell_columns(column_sums);
    sum_lanes<2, 1, 2>(own_sums, lane);
    if (tells<2, 1, 2>(lane)) {
      sums.now[16 * (tile + first_of_lane<2, 1, 2>(lane)) + 8 + square.row] = own_sums[0];
    }
    tell_inside(square, read);
  }

 private:
  // And zeros in the rows that are ahead.
  __device__ __forceinline__ void store(unsigned char* to, const Sums<1>& from) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned first = 16 * (tile + i);
      const unsigned byte = tile_byte(first + lane / 4, first + 8 + lane % 4 * 2);
      put_tile_pair(to, byte, 0, 0);
      put_tile_pair(to, further(byte, 8, 0), from[i][2 * i], from[i][2 * i + 1]);
    }
  }
  __device__ __forceinline__ void tell_columns(float (&of_columns)[4]) const {
    sum_lanes<16, 4, 4>(of_columns, lane);
    if (!tells<16, 4, 4>(lane)) return;
    const unsigned own = first_of_lane<16, 4, 4>(lane), of = tile + own / 2;
    sums.between[of][16 * of + 8 + lane % 4 * 2 + own % 2] = of_columns[0];
  }
  // For each token of the rows, what rows from its first on read of right columns before it.
  __device__ __forceinline__ void tell_inside(const DiagonalSquare<S>& square,
                                              const float (&read)[2][2]) const {
    constexpr int kHalf = DiagonalSquare<S>::kBorders, kCount = 2 * kHalf;
    float of_tokens[kCount];
#pragma unroll
    for (int token = 0; token < kHalf; ++token) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        of_tokens[i * kHalf + token] = square.from(token, square.before(token, read[i]));
      }
    }
    sum_lanes<16, 1, kCount>(of_tokens, lane);
    if (!tells<16, 1, kCount>(lane)) return;
    const unsigned own = first_of_lane<16, 1, kCount>(lane), of = tile + own / kHalf;
    sums.inside[1][kCount * of + kHalf + own % kHalf] = of_tokens[0];
  }
};

}  // namespace
}  // namespace mamba3
