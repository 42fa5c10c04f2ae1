// Products of tiles in shared memory by one warp, and sums over its lanes.
#pragma once

#include <cstdint>

#include "device/mma.cuh"
#include "device/shared_memory.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_memory_cuda.cuh"

namespace mamba3 {
namespace {

// A tile in bf16, as factors of 16 by 16 from a row and a column on.
template <unsigned kRow>
struct Factor {
  std::uint32_t by_rows;
  std::uint32_t by_columns;

  __device__ __forceinline__ Factor(const unsigned char* tile, unsigned lane)
      : by_rows(shared_address(tile) + rows_first(lane, kRow)),
        by_columns(shared_address(tile) + columns_first(lane, kRow)) {}

  // The first factor: its rows are the tile's, or the tile's columns.
  __device__ __forceinline__ void left(unsigned row, unsigned column,
                                       std::uint32_t (&out)[4]) const {
    load_blocks(by_rows + row * kRow + 2 * column, out);
  }
  __device__ __forceinline__ void left_transposed(unsigned row, unsigned column,
                                                  std::uint32_t (&out)[4]) const {
    std::uint32_t blocks[4];
    load_transposed(by_rows + row * kRow + 2 * column, blocks);
    out[0] = blocks[0];
    out[1] = blocks[2];
    out[2] = blocks[1];
    out[3] = blocks[3];
  }
  // The second factor: what is summed over are the tile's rows, or its columns.
  __device__ __forceinline__ void right(unsigned row, unsigned column,
                                        std::uint32_t (&out)[4]) const {
    load_transposed(by_rows + row * kRow + 2 * column, out);
  }
  __device__ __forceinline__ void right_transposed(unsigned row, unsigned column,
                                                   std::uint32_t (&out)[4]) const {
    load_blocks(by_columns + row * kRow + 2 * column, out);
  }
};

// 16 rows by 16 kBlocks columns of a product: a thread has rows lane / 4 and 8 further, of each
// eighth i of the columns 8 i + lane % 4 * 2 and the next.
template <int kBlocks>
using Sums = float[2 * kBlocks][4];

template <int kBlocks>
__device__ __forceinline__ void clear(Sums<kBlocks>& d) {
#pragma unroll
  for (int i = 0; i < 2 * kBlocks; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) d[i][e] = 0;
  }
}

// d += sum over steps in [first, end) of left(step) right(step, block); steps go up to kSteps.
template <int kSteps, int kBlocks, class Left, class Right>
__device__ __forceinline__ void multiply(int first, int end, const Left& left, const Right& right,
                                         Sums<kBlocks>& d) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step < first || step >= end) continue;
    std::uint32_t a[4];
    left(step, a);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      std::uint32_t b[4];
      right(step, i, b);
      mma_k16(d[2 * i], a, b[0], b[1]);
      mma_k16(d[2 * i + 1], a, b[2], b[3]);
    }
  }
}

template <int kBlocks>
__device__ __forceinline__ void scale_rows(float upper, float lower, Sums<kBlocks>& d) {
#pragma unroll
  for (int i = 0; i < 2 * kBlocks; ++i) {
    d[i][0] *= upper;
    d[i][1] *= upper;
    d[i][2] *= lower;
    d[i][3] *= lower;
  }
}

// h [n, p] of the state or its gradient: a warp has 16 rows and 16 kBlocks columns.
template <int kThreads, class S>
struct StateTile {
  static constexpr int kWarps = kThreads / kWarpLanes;
  static constexpr int kAcross = kWarps / S::kStateSteps;  // warps that share rows
  static constexpr int kBlocks = kRowTiles / kAcross;
  unsigned row;
  unsigned column;
  unsigned lane;

  __device__ __forceinline__ explicit StateTile(const MmaPlace& at)
      : row(at.warp % S::kStateSteps * 16),
        column(at.warp / S::kStateSteps * (16 * kBlocks)),
        lane(at.lane) {}

  // Calls f(two neighbours along p, their row, their column).
  template <class F>
  __device__ __forceinline__ void each(Sums<kBlocks>& h, const F& f) const {
#pragma unroll
    for (int i = 0; i < 2 * kBlocks; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        f(h[i][2 * half], h[i][2 * half + 1], row + lane / 4 + 8 * half,
          column + 8 * i + lane % 4 * 2);
      }
    }
  }

  // h = decay h + (weighted rows_n)^T rows_p, with a weight for each token.
  __device__ __forceinline__ void fold(float decay, const unsigned char* rows_n,
                                       const float* weights, const unsigned char* rows_p,
                                       Sums<kBlocks>& h) const {
    scale_rows<kBlocks>(decay, decay, h);
    const Factor<S::kStateRow> left(rows_n, lane);
    const Factor<kTileRow> right(rows_p, lane);
    multiply<kRowTiles, kBlocks>(
        0, kRowTiles,
        [&](int step, std::uint32_t(&a)[4]) {
          left.left_transposed(16 * step, row, a);
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const unsigned own = 16 * step + 8 * half + lane % 4 * 2;
            const float2 weight =
                make_float2(weights[own / S::kRank], weights[(own + 1) / S::kRank]);
            a[2 * half] = weighted(a[2 * half], weight);
            a[2 * half + 1] = weighted(a[2 * half + 1], weight);
          }
        },
        [&](int step, int i, std::uint32_t(&b)[4]) { right.right(16 * step, column + 16 * i, b); },
        h);
  }

 private:
  static __device__ __forceinline__ std::uint32_t weighted(std::uint32_t pair, float2 weight) {
    const float2 v = wide_pair(pair);
    return pack_bf16(v.x * weight.x, v.y * weight.y);
  }
};

// Sums over the lanes that differ in the bits kBit, kBit / 2, .. kLast. Each halving leaves a lane
// with half of the numbers, the upper half where its bit is set; when one is left, both have it.
template <unsigned kBit, unsigned kLast, int kCount>
__device__ __forceinline__ void sum_lanes(float* v, unsigned lane) {
  if constexpr (kBit >= kLast) {
    if constexpr (kCount == 1) {
      v[0] += __shfl_xor_sync(0xffffffffu, v[0], kBit);
      sum_lanes<kBit / 2, kLast, 1>(v, lane);
    } else {
      constexpr int kHalf = kCount / 2;
      const bool upper = (lane & kBit) != 0;
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const float given = upper ? v[i] : v[i + kHalf];
        const float kept = upper ? v[i + kHalf] : v[i];
        v[i] = kept + __shfl_xor_sync(0xffffffffu, given, kBit);
      }
      sum_lanes<kBit / 2, kLast, kHalf>(v, lane);
    }
  }
}

// How sum_lanes<kBit, kLast, kCount> deals the numbers out.
template <unsigned kBit, unsigned kLast, int kCount>
struct LaneSums {
  static constexpr int kHalvings =
      kBit < kLast ? 0 : LaneSums<kBit / 2, kLast, kCount / 2>::kHalvings + 1;
  static constexpr int kLeft = kCount >> kHalvings;
};
template <unsigned kBit, unsigned kLast>
struct LaneSums<kBit, kLast, 1> {
  static constexpr int kHalvings = 0;
  static constexpr int kLeft = 1;
};

// The first of the numbers that a lane is left with.
template <unsigned kBit, unsigned kLast, int kCount>
__device__ __forceinline__ int first_of_lane(unsigned lane) {
  int first = 0;
  int half = kCount / 2;
#pragma unroll
  for (unsigned bit = kBit; bit >= kLast && half > 0; bit /= 2, half /= 2) {
    if ((lane & bit) != 0) first += half;
  }
  return first;
}
// Whether it is the one of those with the same number that tells it.
template <unsigned kBit, unsigned kLast, int kCount>
__device__ __forceinline__ bool tells(unsigned lane) {
  constexpr unsigned kRest = kBit >> LaneSums<kBit, kLast, kCount>::kHalvings;
  return kRest < kLast || (lane & (2 * kRest - kLast)) == 0;
}

// Four words of each of a quad's lanes, transposed.
__device__ __forceinline__ void transpose_quad(std::uint32_t (&w)[4], unsigned lane) {
#pragma unroll
  for (unsigned bit = 1; bit <= 2; bit *= 2) {
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned low = bit == 1 ? 2 * i : i;
      const std::uint32_t given = upper ? w[low] : w[low + bit];
      const std::uint32_t taken = __shfl_xor_sync(0xffffffffu, given, bit);
      w[low] = upper ? taken : w[low];
      w[low + bit] = upper ? w[low + bit] : taken;
    }
  }
}

}  // namespace
}  // namespace mamba3
