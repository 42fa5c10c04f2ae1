// What the read-outs of the chunked scan are multiplied with: silu of z for every rank.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstddef>
#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_memory_cuda.cuh"

namespace mamba3 {
namespace {

// Pieces of x and z, eight columns each, that a lane brings of its warp's tokens.
template <class S>
struct ColumnPieces {
  static constexpr int kTokensAtOnce = kWarpLanes / kRowPieces;
  // Some lanes bring x, the others z.
  static constexpr bool kOneEach = 2 * S::kWarpTokens == kTokensAtOnce;
  int token;              // the lane's first, from the chunk's start
  std::uint32_t x_place;  // bytes from the stage's start; or of z, where the lane brings that
  std::uint32_t z_place;
  const __nv_bfloat16* from;  // of the next chunk: x, or z

  __device__ __forceinline__ ColumnPieces(const ChunkedScanJob& job, const ChunkPlace& at) {
    const unsigned row = at.lane / kRowPieces;
    const unsigned column = at.lane % kRowPieces * 8;
    const bool is_z = kOneEach && row >= S::kWarpTokens;
    const unsigned own = at.warp * S::kWarpTokens + (kOneEach ? row % S::kWarpTokens : row);
    token = static_cast<int>(held(own));
    z_place = offsetof(ChunkStage<S>, gates) + S::row(own, 0) * kGateRowBytes + 2 * column;
    x_place = held(is_z ? z_place : offsetof(ChunkStage<S>, x) + place_in_x<S>(own, column));
    z_place = held(z_place);
    from = (is_z ? job.z : job.x) + (std::int64_t{at.begin} + token) * job.zx_stride +
           at.head * kChunkHeadDim + column;
  }

  __device__ __forceinline__ void bring(const ChunkedScanJob& job, int begin, int end,
                                        const ChunkStage<S>& stage) {
    const std::uint32_t place = shared_address(&stage);
    for_each_number<(S::kWarpTokens + kTokensAtOnce - 1) / kTokensAtOnce>([&](auto number) {
      constexpr int kToken = decltype(number)::value * kTokensAtOnce;
      const bool is = begin + token + kToken < end;
      const __nv_bfloat16* const x = from + kToken * job.zx_stride;
      copy_piece_async(at_piece(place + x_place, kToken % 8) + kToken * S::kXRowBytes, x, is);
      prefetch(x + S::kTokens * job.zx_stride, is);
      if constexpr (kOneEach || !S::kOutputs) return;
      const __nv_bfloat16* const z = x + (job.z - job.x);
      copy_piece_async(place + z_place + S::row(kToken, 0) * kGateRowBytes, z, is);
      prefetch(z + S::kTokens * job.zx_stride, is);
    });
    __pipeline_commit();
    from += S::kTokens * job.zx_stride;
  }
};

// Finite, so that times zero it is zero.
__device__ __forceinline__ float inverse_scale(float scale) {
  constexpr float kMost = 0x1p100f;
  const float inverse = 1.0f / scale;
  return inverse > kMost ? kMost : inverse < -kMost ? -kMost : inverse;
}

// What the gates of a lane's two columns are made with, of every rank.
template <class S>
struct GateWeights {
  float2 rate[S::kRank];     // -log2(e) mimo_z
  float2 inverse[S::kRank];  // of mimo_z mimo_o

  __device__ __forceinline__ GateWeights(const ChunkedScanJob& job, const ChunkPlace& at) {
#pragma unroll
    for (int r = 0; r < S::kRank; ++r) {
      rate[r] = make_float2(kGateRate, kGateRate);
      inverse[r] = make_float2(1, 1);
      if constexpr (S::kRank == 1) continue;
      const int from = (at.head * S::kRank + r) * kChunkHeadDim + static_cast<int>(2 * at.lane);
      const float* const z = job.params.mimo_z + from;
      const float* const o = job.params.mimo_o + from;
      rate[r] = make_float2(kGateRate * z[0], kGateRate * z[1]);
      inverse[r] = make_float2(inverse_scale(z[0] * o[0]), inverse_scale(z[1] * o[1]));
    }
  }
};

// The gates of a warp's tokens; a lane has two columns. What they are made of is loaded well
// before: memory answers late.
template <class S>
struct Gates {
  float2 z[S::kWarpTokens];
  float2 x[S::kWarpTokens];  // where ranks are added up

  // `z_place`, `x_place`: of the lane's columns of the warp's first token.
  __device__ __forceinline__ Gates(std::uint32_t z_place, std::uint32_t x_place) {
    std::uint32_t pairs[S::kWarpTokens], x_pairs[S::kWarpTokens];
    for_each_number<S::kWarpTokens>([&](auto token) {
      constexpr int kToken = decltype(token)::value;
      pairs[kToken] = load_shared<S::row(kToken, 0) * kGateRowBytes>(z_place);
      if constexpr (S::kRank == 1) return;
      x_pairs[kToken] = load_shared<kToken * S::kXRowBytes>(at_piece(x_place, kToken));
    });
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      unpack_bf16(pairs[t], z[t].x, z[t].y);
      if constexpr (S::kRank > 1) unpack_bf16(x_pairs[t], x[t].x, x[t].y);
    }
  }

  // z and x in fp32, as the op was given them. `first`: the warp's first token.
  __device__ __forceinline__ void load_wide(const ChunkedScanJob& job, const ChunkPlace& at,
                                            int first) {
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      if (first + t >= at.end) continue;
      const std::int64_t from = (first + t) * job.columns.row_stride + at.head * kChunkHeadDim +
                                static_cast<int>(2 * at.lane);
      z[t] = make_float2(job.columns.z[from], job.columns.z[from + 1]);
      x[t] = make_float2(job.columns.x[from], job.columns.x[from + 1]);
    }
  }

  // When the whole warp has its z and x. `place`: of the lane's gates in the warp's first row.
  // `skip_x`: D mimo_x of the lane's columns. `skips`: what is skipped to y.
  __device__ __forceinline__ void make(const GateWeights<S>& weights, std::uint32_t skip_x,
                                       std::uint32_t place, float2 (&skips)[S::kWarpTokens]) const {
    float2 skip_weights[S::kRank];
    if constexpr (S::kRank > 1) {
      for_each_number<S::kRank>([&](auto rank) {
        constexpr int kRank = decltype(rank)::value;
        skip_weights[kRank] = load_shared_pair<kRank * sizeof(RankRow)>(skip_x);
      });
    }
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) skips[t] = make_float2(0, 0);
    for_each_number<S::kWarpRows / kAtOnce>([&](auto number) {
      constexpr int kFirst = decltype(number)::value * kAtOnce;
      float2 gates[kAtOnce];
      make_rows<kFirst>(weights, gates);
      for_each_number<kAtOnce>([&](auto i) {
        constexpr int kI = decltype(i)::value;
        constexpr int kToken = (kFirst + kI) / S::kRank;
        constexpr int kRank = (kFirst + kI) % S::kRank;
        constexpr unsigned kRow = S::row(kToken, kRank);
        store_shared<kRow * kGateRowBytes>(
            place ^ ((kRow % 8) << 5),
            make_uint2(__float_as_uint(gates[kI].x), __float_as_uint(gates[kI].y)));
        if constexpr (S::kRank > 1) {
          skips[kToken] = make_float2(fmaf(gates[kI].x, skip_weights[kRank].x, skips[kToken].x),
                                      fmaf(gates[kI].y, skip_weights[kRank].y, skips[kToken].y));
        }
      });
    });
    if constexpr (S::kRank > 1) {
#pragma unroll
      for (int t = 0; t < S::kWarpTokens; ++t) {
        skips[t] = make_float2(skips[t].x * x[t].x, skips[t].y * x[t].y);
      }
    }
  }

  // Of several ranks, in the place of x.
  static __device__ __forceinline__ void put_skips(std::uint32_t place,
                                                   const float2 (&skips)[S::kWarpTokens]) {
    for_each_number<S::kWarpTokens>([&](auto token) {
      constexpr int kToken = decltype(token)::value;
      store_shared<kToken * S::kXRowBytes>(
          place ^ ((kToken % 4) << 6),
          make_uint2(__float_as_uint(skips[kToken].x), __float_as_uint(skips[kToken].y)));
    });
  }

 private:
  static constexpr int kAtOnce = 4;  // rows

  // z scale / (1 + 2^(rate z)), step by step: a step's results come late.
  template <int kFirst>
  __device__ __forceinline__ void make_rows(const GateWeights<S>& weights,
                                            float2 (&out)[kAtOnce]) const {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float2 v = z[(kFirst + i) / S::kRank];
      const float2 rate = weights.rate[(kFirst + i) % S::kRank];
      out[i] = make_float2(fast_exp2(rate.x * v.x), fast_exp2(rate.y * v.y));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float2 inverse = weights.inverse[(kFirst + i) % S::kRank];
      out[i] = make_float2(fast_inverse(fmaf(out[i].x, inverse.x, inverse.x)),
                           fast_inverse(fmaf(out[i].y, inverse.y, inverse.y)));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float2 v = z[(kFirst + i) / S::kRank];
      out[i] = make_float2(v.x * out[i].x, v.y * out[i].y);
    }
  }
};

}  // namespace
}  // namespace mamba3
