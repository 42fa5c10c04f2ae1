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
    x_place = held(is_z ? z_place : offsetof(ChunkStage<S>, x) + swizzled(own, column));
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
      copy_piece_async(at_piece(place + x_place, kToken % 8) + kToken * kTileRowBytes, x, is);
      if constexpr (kOneEach || !S::kOutputs) return;
      copy_piece_async(place + z_place + S::row(kToken, 0) * kGateRowBytes, x + (job.z - job.x),
                       is);
    });
    __pipeline_commit();
    from += S::kTokens * job.zx_stride;
  }
};

// The gates of a warp's tokens; a lane has two columns. What they are made of is loaded well
// before: memory answers late.
template <class S>
struct Gates {
  float2 z[S::kWarpTokens];
  float4 weights;  // of the next rank

  // `place`: of z of the warp's first token.
  __device__ __forceinline__ Gates(const ChunkMemory<S>& m, std::uint32_t place, unsigned lane) {
    std::uint32_t pairs[S::kWarpTokens];
    for_each_number<S::kWarpTokens>([&](auto token) {
      constexpr int kToken = decltype(token)::value;
      pairs[kToken] = load_shared<S::row(kToken, 0) * kGateRowBytes>(place);
    });
    load_weights(m, 0, lane);
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) unpack_bf16(pairs[t], z[t].x, z[t].y);
  }

  // z in fp32, as the op was given it. `first`: the warp's first token.
  __device__ __forceinline__ void load_wide(const ChunkedScanJob& job, const ChunkPlace& at,
                                            int first) {
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      if (first + t >= at.end) continue;
      const float* from = job.columns.z + (first + t) * job.columns.row_stride +
                          at.head * kChunkHeadDim + 2 * at.lane;
      z[t] = make_float2(from[0], from[1]);
    }
  }

  // When the whole warp has its z. `place`: of the lane's gates in the warp's first row.
  __device__ __forceinline__ void make(const ChunkMemory<S>& m, std::uint32_t place,
                                       unsigned lane) {
    for_each_number<S::kRank>([&](auto rank) {
      constexpr int kRank = decltype(rank)::value;
      const float4 own = weights;
      if constexpr (kRank + 1 < S::kRank) load_weights(m, kRank + 1, lane);
      for_each_number<S::kWarpTokens>([&](auto token) {
        constexpr int kToken = decltype(token)::value;
        constexpr unsigned kRow = S::row(kToken, kRank);
        const float gate[2] = {gate_of(z[kToken].x, own.x, own.z),
                               gate_of(z[kToken].y, own.y, own.w)};
        store_shared<kRow * kGateRowBytes>(
            place ^ ((kRow % 8) << 5),
            make_uint2(__float_as_uint(gate[0]), __float_as_uint(gate[1])));
      });
    });
  }

 private:
  __device__ __forceinline__ void load_weights(const ChunkMemory<S>& m, int rank, unsigned lane) {
    weights = S::kRank > 1 ? m.gate_weights[rank][lane] : make_float4(kGateRate, kGateRate, 1, 1);
  }
};

}  // namespace
}  // namespace mamba3
