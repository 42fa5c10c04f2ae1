// Products of tiles in shared memory, by one warp or by a warpgroup, and sums over lanes.
#pragma once

#include <cstdint>

#include "device/mma.cuh"
#include "device/shared_memory.cuh"
#include "device/wgmma_narrow.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_memory_cuda.cuh"

namespace mamba3 {
namespace {

// A tile in bf16, as factors of 16 by 16 from a row and a column on, both multiples of 16. Factors
// of one memory have a lane's places in common, which are those in a tile where it begins.
struct Factor {
  std::uint32_t by_rows;     // where rows_first() of device/mma.cuh has a lane's row
  std::uint32_t by_columns;  // and columns_first()
  std::uint32_t by_eight;    // of eight rows and 32 columns
  std::uint32_t tile;        // of the memory

  template <class Memory>
  __device__ __forceinline__ Factor(const Memory& memory, const unsigned char* own, unsigned lane)
      : by_rows(shared_address(&memory) + swizzled(lane % 16, lane / 16 * 8)),
        by_columns(shared_address(&memory) + swizzled(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8)),
        by_eight(shared_address(&memory) + swizzled(lane % 8, lane / 8 * 8)),
        tile(shared_address(own) - shared_address(&memory)) {}

  // The first factor: its rows are the tile's, or the tile's columns.
  __device__ __forceinline__ void left(unsigned row, unsigned column,
                                       std::uint32_t (&out)[4]) const {
    load_blocks(along_columns(by_rows, row, column), out);
  }
  __device__ __forceinline__ void left_transposed(unsigned row, unsigned column,
                                                  std::uint32_t (&out)[4]) const {
    load_transposed(along_rows(by_columns, row, column), out);
  }
  // The second factor: what is summed over are the tile's rows, or its columns.
  __device__ __forceinline__ void right(unsigned row, unsigned column,
                                        std::uint32_t (&out)[4]) const {
    load_transposed(along_rows(by_rows, row, column), out);
  }
  __device__ __forceinline__ void right_transposed(unsigned row, unsigned column,
                                                   std::uint32_t (&out)[4]) const {
    load_blocks(along_columns(by_columns, row, column), out);
  }
  // Sums of two eighths, in bf16, where left() finds them: a thread's pairs are as theirs.
  __device__ __forceinline__ void put(unsigned row, unsigned column,
                                      const float (*eighths)[4]) const {
    store_matrices(
        along_columns(by_rows, row, column),
        make_uint4(pack_bf16(eighths[0][0], eighths[0][1]), pack_bf16(eighths[0][2], eighths[0][3]),
                   pack_bf16(eighths[1][0], eighths[1][1]),
                   pack_bf16(eighths[1][2], eighths[1][3])));
  }
  // Of only eight rows, for two steps along the columns.
  __device__ __forceinline__ void right_eight(unsigned row, unsigned column,
                                              std::uint32_t (&out)[4]) const {
    load_blocks(along_columns(by_eight, row, column), out);
  }

 private:
  // A row adds to a place without a carry into the piece, so either may be first. What comes last
  // should be a constant: that of steps along the columns, or along the rows.
  __device__ __forceinline__ std::uint32_t along_columns(std::uint32_t place, unsigned row,
                                                         unsigned column) const {
    return at_piece(place + row * kTileRowBytes, piece(column)) + of_tile(column);
  }
  __device__ __forceinline__ std::uint32_t along_rows(std::uint32_t place, unsigned row,
                                                      unsigned column) const {
    return at_piece(place, piece(column)) + (of_tile(column) + row * kTileRowBytes);
  }
  static __device__ __forceinline__ int piece(unsigned column) {
    return static_cast<int>(column % kTileColumns / 8);
  }
  __device__ __forceinline__ std::uint32_t of_tile(unsigned column) const {
    return tile + column / kTileColumns * kTileBytes;
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

// Two eighths of such sums, from one on.
__device__ __forceinline__ Sums<1>& two_eighths(float (*first)[4]) {
  return *reinterpret_cast<Sums<1>*>(first);
}

// A number that stays in its registers: the compiler would compute it again in every branch.
__device__ __forceinline__ unsigned kept(unsigned v) {
  asm volatile("" : "+r"(v));
  return v;
}
__device__ __forceinline__ std::int64_t kept(std::int64_t v) {
  asm volatile("" : "+l"(v));
  return v;
}

// From a step of 16 to the next in tiles whose rows are summed over, or their columns.
template <int kTrans>
__device__ __forceinline__ constexpr std::uint32_t step_bytes(int step) {
  return static_cast<std::uint32_t>(kTrans == 1 ? step * 16 * kTileRowBytes
                                                : step / 4 * kTileBytes + step % 4 * 32);
}

// Operands of wgmma in the block's memory: an addition leads from that of its begin to each, where
// it would take masks and shifts to make each of its own address.
struct Operands {
  std::uint32_t begin;
  std::uint64_t first;

  template <class Memory>
  __device__ __forceinline__ explicit Operands(const Memory& memory)
      : begin(shared_address(&memory)), first(wgmma_operand(begin)) {}

  // A difference of shared addresses: of generic ones the compiler makes no constant.
  __device__ __forceinline__ std::uint64_t tile(const unsigned char* own) const {
    return wgmma_further(first, shared_address(own) - begin);
  }
  // A tile's rows from a multiple of eight on.
  __device__ __forceinline__ std::uint64_t rows(const unsigned char* own, unsigned row) const {
    return wgmma_further(tile(own), row * kTileRowBytes);
  }
  // Its columns from a multiple of 16 on.
  __device__ __forceinline__ std::uint64_t columns(const unsigned char* own,
                                                   unsigned column) const {
    return wgmma_further(tile(own), tile_byte(0, column));
  }
};

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

// d += 16 rows of `left` times eight rows of `right`, summed over their columns.
template <int kSteps>
__device__ __forceinline__ void multiply_eight(const Factor& left, unsigned left_row,
                                               const Factor& right, unsigned right_row,
                                               float (&d)[4]) {
#pragma unroll
  for (int step = 0; step < kSteps; step += 2) {
    std::uint32_t a[2][4], b[4];
    right.right_eight(right_row, 16 * step, b);
    left.left(left_row, 16 * step, a[0]);
    left.left(left_row, 16 * step + 16, a[1]);
    mma_k16(d, a[0], b[0], b[1]);
    mma_k16(d, a[1], b[2], b[3]);
  }
}

// d += A B, or without kAdds d = A B, by the four warps of a warpgroup, each of which has 16 of 64
// rows. Starts; the sums are there after wgmma_wait, and factors are what was written before a
// fence_async_proxy(). kTrans: 1 where a tile's rows are summed over, 0 where its columns are.
template <bool kAdds, int kSteps, int kTransA, int kTransB, int kBlocks>
__device__ __forceinline__ void start_multiply(std::uint64_t a, std::uint64_t b, Sums<kBlocks>& d) {
  if constexpr (!kAdds) wgmma_first_k16<kTransA, kTransB>(d, a, b);
#pragma unroll
  for (int step = kAdds ? 0 : 1; step < kSteps; ++step) {
    wgmma_k16<kTransA, kTransB>(d, wgmma_further(a, step_bytes<kTransA>(step)),
                                wgmma_further(b, step_bytes<kTransB>(step)));
  }
}

// Numbers of a product before it is started, and when it is done.
template <int kBlocks>
__device__ __forceinline__ void hold(Sums<kBlocks>& d) {
#pragma unroll
  for (int i = 0; i < 2 * kBlocks; ++i) wgmma_hold(d[i]);
}

// What is left at the row's token of what an earlier one wrote.
__device__ __forceinline__ float decay_between(const TokenTerms& row, const TokenTerms& column) {
  return fast_exp2((row.decay_high - column.decay_high) + (row.decay_low - column.decay_low));
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
  // Rounds to a tile of h.
  __device__ __forceinline__ void put(const Factor& to, const Sums<kBlocks>& h) const {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      to.put(row, column + 16 * block, h + 2 * block);
    }
  }
  // The sum of a thread's numbers times those of a tile.
  __device__ __forceinline__ float multiply_with(const Factor& other,
                                                 const Sums<kBlocks>& h) const {
    float sum = 0;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      std::uint32_t words[4];
      other.left(row, column + 16 * block, words);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* own = &h[2 * block + i / 2][i % 2 * 2];
        const float2 pair = wide_pair(words[i]);
        sum = fmaf(own[0], pair.x, fmaf(own[1], pair.y, sum));
      }
    }
    return sum;
  }

  // Starts h = decay h + rows_n^T rows_p as a group of its own. A warpgroup's 64 rows of h are a
  // tile's columns in rows_n.
  __device__ __forceinline__ void start_fold(float decay, const Operands& in,
                                             const unsigned char* rows_n,
                                             const unsigned char* rows_p, Sums<kBlocks>& h) const {
    scale_rows<kBlocks>(decay, decay, h);
    hold<kBlocks>(h);
    wgmma_fence();
    start_multiply<true, kRowTiles, 1, 1, kBlocks>(
        in.columns(rows_n, row / kTileColumns * kTileColumns), in.columns(rows_p, column), h);
    wgmma_commit();
  }
  // Waits for it, and for all that was started before.
  __device__ __forceinline__ void finish_fold(Sums<kBlocks>& h) const {
    wgmma_wait<0>();
    hold<kBlocks>(h);
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

// Adds the sums that a lane is left with, from number `first` on, to those of before: number i is
// of neighbour i % 2 in eighth i / 2 of `to`.
template <int kLeft>
__device__ __forceinline__ void add_sums(const float* sums, int first, float* to) {
  if constexpr (kLeft == 1) {
    to[first / 2 * 8 + first % 2] += sums[0];
  } else {
#pragma unroll
    for (int i = 0; i < kLeft; i += 2) {
      auto& pair = *reinterpret_cast<float2*>(to + (first + i) / 2 * 8);
      pair = make_float2(pair.x + sums[i], pair.y + sums[i + 1]);
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

}  // namespace
}  // namespace mamba3
