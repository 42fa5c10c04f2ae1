// A chunk's rows of K and Q, of X and of the gradient of the read-outs.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_memory_cuda.cuh"

namespace mamba3 {
namespace {

// What rows of K or Q are made of, and where they go.
template <class S>
struct Rows {
  const __half* raw;                // [row, n]
  const float2* norm;               // [pair]
  const float2 (*bias)[S::kPairs];  // [r, pair]
  unsigned char* out;               // [row, n]
};

struct RowWeights {
  float2 norm;
  float2 bias;
};

// A thread's place among rows that are made at once. A warp has 32 pairs of a row; warps of a
// scheduler, which are four apart, have different ones, for those that turn take longer.
template <class S>
struct RowPlace {
  static constexpr unsigned kWarpsOfRow = S::kPairs / kWarpLanes;
  unsigned row;
  unsigned first_pair;  // of the warp
  unsigned pair;

  __device__ __forceinline__ explicit RowPlace(const MmaPlace& at)
      : row(at.warp % 4 + at.warp / (4 * kWarpsOfRow) * 4),
        first_pair(at.warp / 4 % kWarpsOfRow * kWarpLanes),
        pair(first_pair + at.lane) {}
};

// Normed rows with their bias, turned by cos_sin [t, stride] as far as there are angles: a thread's
// pair of some rows. kTurns: whether any of its warp's pairs turn. Some rows are loaded before any
// is stored: the compiler moves no load over a store that might be to the same place, and would
// wait for each.
template <bool kTurns, int kThreads, class S, class... Kinds>
__device__ __forceinline__ void make_pairs(const RowPlace<S>& at, const __half2* cos_sin,
                                           int stride, int angles, const Kinds&... kinds) {
  constexpr int kGroups = kThreads / S::kPairs;
  constexpr int kAtOnce = 4, kKinds = sizeof...(kinds);
  static_assert(kGroups % S::kRank == 0);
  const bool turns = at.pair < angles;
  const unsigned byte = tile_byte(at.row, 2 * at.pair);
  const auto* rotation = cos_sin + at.row / S::kRank * stride + (turns ? at.pair : 0);
  const Rows<S> rows[] = {kinds...};
  const RowWeights weights[] = {{kinds.norm[at.pair], kinds.bias[at.row % S::kRank][at.pair]}...};
#pragma unroll
  for (int begin = 0; begin < kBackwardRows / kGroups; begin += kAtOnce) {
    __half2 raw[kAtOnce][kKinds], rotations[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, rotation += kGroups / S::kRank * stride) {
      if (kTurns) rotations[i] = *rotation;
#pragma unroll
      for (int kind = 0; kind < kKinds; ++kind) {
        const auto* from = reinterpret_cast<const __half2*>(rows[kind].raw);
        raw[i][kind] = from[(at.row + (begin + i) * kGroups) * S::kPairs + at.pair];
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float2 by = kTurns && turns ? __half22float2(rotations[i]) : make_float2(1.0f, 0.0f);
#pragma unroll
      for (int kind = 0; kind < kKinds; ++kind) {
        const RowWeights& own = weights[kind];
        const float2 v = biased(raw[i][kind], own.norm, own.bias);
        const float2 to = kTurns ? turned(v, by) : v;
        put_tile_pair(rows[kind].out, further(byte, (begin + i) * kGroups, 0), to.x, to.y);
      }
    }
  }
}

template <int kThreads, class S, class... Kinds>
__device__ __forceinline__ void make_rows(const MmaPlace& at, const __half2* cos_sin, int stride,
                                          int angles, const Kinds&... kinds) {
  const RowPlace<S> place(at);
  if (RowPlace<S>::kWarpsOfRow == 1 || place.first_pair < angles) {
    make_pairs<true, kThreads, S>(place, cos_sin, stride, angles, kinds...);
  } else {
    make_pairs<false, kThreads, S>(place, cos_sin, stride, angles, kinds...);
  }
}

// A rank's weights of eight neighbours: two pieces of its row.
struct RankWeights {
  float v[8];

  __device__ __forceinline__ RankWeights(const float* weights, unsigned column) {
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
      const float4 four = *reinterpret_cast<const float4*>(weights + weight_place(column + e));
      v[e] = four.x;
      v[e + 1] = four.y;
      v[e + 2] = four.z;
      v[e + 3] = four.w;
    }
  }
};

// Eight neighbours in bf16.
struct Eight {
  float v[8];

  __device__ __forceinline__ explicit Eight(const unsigned char* from) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    unpack_bf16(bits.x, v[0], v[1]);
    unpack_bf16(bits.y, v[2], v[3]);
    unpack_bf16(bits.z, v[4], v[5]);
    unpack_bf16(bits.w, v[6], v[7]);
  }
  __device__ __forceinline__ void scale(float by) {
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] *= by;
  }
  __device__ __forceinline__ void scale(const RankWeights& by) {
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] *= by.v[e];
  }
  __device__ __forceinline__ uint4 bits() const {
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                      pack_bf16(v[6], v[7]));
  }
};

constexpr int kRowEights = kBackwardHeadDim / 8;

// Calls f(row, first of eight columns) for all of a tile.
template <int kThreads, class F>
__device__ __forceinline__ void for_eights(const F& f) {
  static_assert(kBackwardRows * kRowEights % kThreads == 0);
  const unsigned row = threadIdx.x / kRowEights;
  const unsigned column = threadIdx.x % kRowEights * 8;
#pragma unroll
  for (int i = 0; i < kBackwardRows; i += kThreads / kRowEights) f(row + i, column);
}

// A thread's sums are pairs of columns, one in each eighth. Where column c of a factor is column
// mingled(c) of a tile, its pairs in four eighths are neighbours in the tile. Its own inverse.
__device__ __forceinline__ unsigned mingled(unsigned column) {
  return column / 32 * 32 + column % 8 / 2 * 8 + column % 32 / 8 * 2 + column % 2;
}

// Eight of x times their rank's weights.
template <class S>
__device__ __forceinline__ Eight ranked_x(const unsigned char* raw_x, const KeyMemory<S>& m,
                                          unsigned row, unsigned column) {
  Eight x(raw_x + row / S::kRank * kInputRow + 2 * column);
  if constexpr (S::kRank > 1) x.scale(RankWeights(m.mimo_x[row % S::kRank], column));
  return x;
}

// The same in bf16, as X has them.
template <class S>
__device__ __forceinline__ uint4 spread_x(const unsigned char* raw_x, const KeyMemory<S>& m,
                                          unsigned row, unsigned column) {
  if constexpr (S::kRank > 1) return ranked_x(raw_x, m, row, column).bits();
  return *reinterpret_cast<const uint4*>(raw_x + row * kInputRow + 2 * column);
}

// X times what is left of it at the chunk's end; column c has that of mingled(c).
template <int kThreads, class S>
__device__ __forceinline__ void spread_faded_x(const unsigned char* raw_x, const float* fade,
                                               KeyMemory<S>& m) {
  for_eights<kThreads>([&](unsigned row, unsigned column) {
    Eight x = ranked_x(raw_x, m, row, column);
    x.scale(fade[row / S::kRank]);
    const uint4 bits = x.bits();
    const std::uint32_t words[] = {bits.x, bits.y, bits.z, bits.w};
    const unsigned first = tile_byte(row, mingled(column));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      *reinterpret_cast<std::uint32_t*>(m.x + further(first, 0, i)) = words[i];
    }
  });
}

// z sigmoid(z) and its slope.
struct Gate {
  float at;
  float slope;

  __device__ __forceinline__ explicit Gate(float z) {
    const float sigmoid = fast_inverse(1.0f + fast_exp2(kGateRate * z));
    at = z * sigmoid;
    slope = fmaf(at, 1.0f - sigmoid, sigmoid);
  }
};

// X and grad_o = grad_y mimo_o silu(z mimo_z): what the gate leaves of a gradient, as it is and for
// what was read of the state before the chunk. All is loaded before anything is stored.
template <int kThreads, class S>
__device__ __forceinline__ void make_columns(const ChunkDecays<S>& decays, BackwardMemory<S>& m) {
  for_eights<kThreads>([&](unsigned row, unsigned column) {
    const unsigned from = row / S::kRank * kInputRow + 2 * column;
    const uint4 x = spread_x(m.keys.x, m, row, column);
    Eight z(m.raw_z + from);
    Eight grad(m.raw_grad_y + from);
    const float start_decay = decays.start_decay[row / S::kRank];
    if constexpr (S::kRank > 1) {
      z.scale(RankWeights(m.mimo_z[row % S::kRank], column));
      grad.scale(RankWeights(m.mimo_o[row % S::kRank], column));
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) grad.v[e] *= Gate(z.v[e]).at;
    const unsigned byte = tile_byte(row, column);
    *reinterpret_cast<uint4*>(m.x + byte) = x;
    *reinterpret_cast<uint4*>(m.grad_o + byte) = grad.bits();
    grad.scale(start_decay);
    *reinterpret_cast<uint4*>(m.decayed_grad_o + byte) = grad.bits();
  });
}

}  // namespace
}  // namespace mamba3
