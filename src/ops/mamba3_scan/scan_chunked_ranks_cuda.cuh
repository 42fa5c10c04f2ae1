// X of every rank for the chunked scan, by the warpgroup that makes outputs, a chunk ahead.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstddef>
#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_memory_cuda.cuh"

namespace mamba3 {
namespace {

// Makes X of a warp's tokens, and the same with the tokens' weights at the chunk's end. A lane has
// the same rank and columns of several tokens.
template <class S>
struct RankSpreader {
  static constexpr int kWarpTokens = S::kTokens / kGroupWarps;
  static constexpr int kPieces = kWarpTokens * S::kRank * kRowPieces / kWarpLanes;
  static constexpr int kTokensAtOnce = kWarpTokens / kPieces;
  static constexpr int kTokensRequested = kWarpLanes / kRowPieces;  // at once
  float weights[8];
  // Bytes, of the first token's: in X, in the fades; addresses of the lane's pieces that are
  // brought and read.
  std::uint32_t to;
  std::uint32_t fade_from;
  std::uint32_t brought;
  std::uint32_t read;
  int token;                  // the first that the lane brings, from the chunk's start
  const __nv_bfloat16* from;  // the same of the next chunk

  __device__ __forceinline__ RankSpreader(const ChunkedScanJob& job, const ChunkPlace& at,
                                          const ChunkMemory<S>& m) {
    const unsigned warp_token = at.warp % kGroupWarps * kWarpTokens;
    const unsigned piece = at.lane % kRowPieces;
    const unsigned rank = at.lane / kRowPieces % S::kRank;
    const unsigned own = warp_token + at.lane / kRowPieces / S::kRank;
#pragma unroll
    for (int i = 0; i < 8; ++i) weights[i] = m.mimo_x[rank][8 * piece + i];
    to = held(swizzled(S::row(own, rank), 8 * piece));
    fade_from = held(own * sizeof(float));
    read = held(shared_address(m.next_x) + own * kTileRowBytes + piece * kPieceBytes);
    token = static_cast<int>(held(warp_token + at.lane / kRowPieces));
    brought = held(shared_address(m.next_x) + static_cast<unsigned>(token) * kTileRowBytes +
                   piece * kPieceBytes);
    from = job.x + (std::int64_t{at.begin} + token) * job.zx_stride + at.head * kChunkHeadDim +
           8 * piece;
  }

  // The next chunk's x, from token `begin` on. Behind the end come zeros.
  __device__ __forceinline__ void request(const ChunkedScanJob& job, int begin, int end) {
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kWarpTokens; t += kTokensRequested) {
      copy_piece_async(brought + t * kTileRowBytes, from + t * job.zx_stride,
                       begin + token + t < end);
    }
    __pipeline_commit();
    from += S::kTokens * job.zx_stride;
  }

  // When its weights are there.
  __device__ __forceinline__ void spread(const ChunkWeights<S>& of_chunk,
                                         ChunkStage<S>& stage) const {
    constexpr int kFaded = offsetof(ChunkStage<S>, faded_x) - offsetof(ChunkStage<S>, own_x);
    __pipeline_wait_prior(0);
    __syncwarp();
    const std::uint32_t fades = shared_address(of_chunk.fade) + fade_from;
    const std::uint32_t place = shared_address(stage.own_x) + to;
    uint4 x[kPieces];
    float fade[kPieces];
    for_each_number<kPieces>([&](auto number) {
      constexpr int kNumber = decltype(number)::value;
      constexpr int kToken = kNumber * kTokensAtOnce;
      x[kNumber] = load_shared_piece<kToken * kTileRowBytes>(read);
      fade[kNumber] = __uint_as_float(load_shared<kToken * sizeof(float)>(fades));
    });
    for_each_number<kPieces>([&](auto number) {
      constexpr int kNumber = decltype(number)::value;
      constexpr unsigned kRow = S::row(kNumber * kTokensAtOnce, 0);
      constexpr int kOffset = kRow * kTileRowBytes;
      const std::uint32_t pairs[4] = {x[kNumber].x, x[kNumber].y, x[kNumber].z, x[kNumber].w};
      std::uint32_t own[4], faded[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float a;
        float b;
        unpack_bf16(pairs[i], a, b);
        a *= weights[2 * i];
        b *= weights[2 * i + 1];
        own[i] = pack_bf16(a, b);
        faded[i] = pack_bf16(a * fade[kNumber], b * fade[kNumber]);
      }
      const std::uint32_t row = at_piece(place, kRow % 8);
      if constexpr (S::kOutputs) {
        store_shared_piece<kOffset>(row, make_uint4(own[0], own[1], own[2], own[3]));
      }
      store_shared_piece<kOffset + kFaded>(row, make_uint4(faded[0], faded[1], faded[2], faded[3]));
    });
  }

  // For the chunk from `begin` on, whose weights are there, when its stage is empty; and requests
  // the next.
  __device__ __forceinline__ void make(const ChunkedScanJob& job, const ChunkPlace& at, int begin,
                                       const StageCursor& cursor, ChunkMemory<S>& m) {
    const int s = cursor.uniform_stage();
    barrier_wait(&m.emptied[s], cursor.parity ^ 1);
    if constexpr (S::kOutputs) barrier_wait(&m.written[s], cursor.parity ^ 1);
    spread(m.weights[cursor.weights()], m.stages[s]);
    arrive_warp(&m.filled[s], at.lane);
    if (begin + S::kTokens < at.end) request(job, begin + S::kTokens, at.end);
  }
};

}  // namespace
}  // namespace mamba3
