// The scores of a chunk and their gradients, with their weights, and what these are to the
// gradients of a token's numbers. Notation: docs/SEMANTICS.md, section 9.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_diagonal_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_products_cuda.cuh"

namespace mamba3 {
namespace {

// A tile of 16 by 16 below the diagonal: a thread has rows lane / 4 and 8 further, of columns
// lane % 4 * 2 and the next, and 8 further.
template <class S>
struct ScoreTile {
  BackwardMemory<S>& m;
  const ChunkDecays<S>& decays;
  ChunkSums<S>& sums;
  unsigned row;  // of tiles
  unsigned column;
  unsigned lane;
  Sums<1> scores;  // S = Q K^T
  Sums<1> grads;   // dP = dO X^T

  __device__ __forceinline__ ScoreTile(BackwardMemory<S>& memory, int parity, unsigned row_in,
                                       unsigned column_in, unsigned lane_in)
      : m(memory),
        decays(memory.decays[parity]),
        sums(memory.sums[parity]),
        row(row_in),
        column(column_in),
        lane(lane_in) {
    multiply_scores<S>(m, 16 * row, 16 * column, lane, scores, grads);
  }

  // To sums over rows and columns, and to the weighted matrices.
  __device__ __forceinline__ void finish() {
    const TokenTerms rows[2] = {decays.terms[row_token(0)], decays.terms[row_token(1)]};
    float row_sums[2] = {}, column_sums[4] = {};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const TokenTerms of_column = decays.terms[(16 * column + column_of(j, e)) / S::kRank];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[j][2 * i + e];
          float& grad = grads[j][2 * i + e];
          const float decay = decay_between(rows[i], of_column);
          const float decayed = score * grad * decay;
          column_sums[2 * j + e] += decayed;
          row_sums[i] += decayed * of_column.fill;
          const float weight = decay * of_column.fill;
          score *= weight;
          grad *= weight;
        }
      }
    }
    Factor(m, m.scores, lane).put(16 * row, 16 * column, scores);
    Factor(m, m.grad_scores, lane).put(16 * row, 16 * column, grads);
    tell_columns(column_sums);
    tell_rows(row_sums);
  }

 private:
  __device__ __forceinline__ unsigned row_token(int i) const {
    return (16 * row + lane / 4 + 8 * i) / S::kRank;
  }
  __device__ __forceinline__ unsigned column_of(int j, int e) const {
    return 8 * j + lane % 4 * 2 + e;
  }
  __device__ __forceinline__ void tell_rows(float (&of_rows)[2]) const {
    sum_lanes<2, 1, 2>(of_rows, lane);
    const unsigned own = lane / 4 + 8 * first_of_lane<2, 1, 2>(lane);
    if (tells<2, 1, 2>(lane)) sums.between[column][16 * row + own] = of_rows[0];
  }
  __device__ __forceinline__ void tell_columns(float (&of_columns)[4]) const {
    sum_lanes<16, 4, 4>(of_columns, lane);
    const int own = first_of_lane<16, 4, 4>(lane);
    if (tells<16, 4, 4>(lane)) {
      sums.between[row][16 * column + column_of(own / 2, own % 2)] = of_columns[0];
    }
  }
};

constexpr unsigned kBelowTiles = kRowTiles * (kRowTiles - 1) / 2;
constexpr unsigned kScoreWarps = kBelowTiles + kRowTiles + kRowTiles / 2;

// A warp takes a tile below the diagonal, or some of those on it. The multiprocessor deals its
// warps out by fours: two of its schedulers have two tiles below and right columns, and two have
// one and left columns of two tiles.
template <class S>
__device__ __forceinline__ void make_scores(const MmaPlace& at, int parity, BackwardMemory<S>& m) {
  const unsigned of_four = at.warp % 4;
  if (at.warp < kBelowTiles) {
    unsigned row = 1, first = 0;
    while (first + row <= at.warp) first += row++;
    ScoreTile<S>(m, parity, row, at.warp - first, at.lane).finish();
  } else if (at.warp < kScoreWarps && of_four < 2) {
    DiagonalRights<S>(m, parity, 2 * of_four, at.lane).finish();
  } else if (at.warp < kScoreWarps) {
    DiagonalLeft<S>(m, parity, at.warp / 8 * 2 + of_four - 2, at.lane).finish();
  }
}

}  // namespace
}  // namespace mamba3
