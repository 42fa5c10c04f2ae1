// What the read-outs of the chunked scan are multiplied with: silu of z for every rank.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_memory_cuda.cuh"

namespace mamba3 {
namespace {

__device__ __forceinline__ float fast_exp2(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

__device__ __forceinline__ float gate_of(float z, float rate, float scale) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + fast_exp2(rate * z)));
  return z * scale * inverse;
}

// Brings z, and x where it is spread over ranks, of a rotating warp's tokens; those behind the end
// bring zeros.
template <class S>
__device__ __forceinline__ void request_warp_columns(const ChunkedScanJob& job,
                                                     const ChunkPlace& at, int first,
                                                     WarpColumns<S>& to) {
  constexpr unsigned kPieces = S::kWarpTokens * kRowPieces;
#pragma unroll
  for (unsigned i = 0; i < to.kKinds * kPieces; i += kWarpLanes) {
    const unsigned piece = (i + at.lane) % kRowPieces;
    const unsigned token = (i + at.lane) / kRowPieces % S::kWarpTokens;
    const unsigned kind = (i + at.lane) / kPieces;
    if (!S::kOutputs && kind == 0) continue;
    const bool is = first + static_cast<int>(token) < at.end;
    const __nv_bfloat16* from = (kind == 0 ? job.z : job.x) + (first + token) * job.zx_stride +
                                at.head * kChunkHeadDim + piece * 8;
    __pipeline_memcpy_async(&to.rows[kind][token][piece * kPieceBytes],
                            is ? static_cast<const void*>(from) : job.nothing, kPieceBytes,
                            is ? 0 : kPieceBytes);
  }
  __pipeline_commit();
}

// z in fp32, as the op was given it.
__device__ __forceinline__ float2 wide_z(const ChunkedScanJob& job, const ChunkPlace& at,
                                         int token) {
  if (token >= at.end) return make_float2(0, 0);
  const float* from =
      job.columns.z + token * job.columns.row_stride + at.head * kChunkHeadDim + 2 * at.lane;
  return make_float2(from[0], from[1]);
}

// The gates of a warp's tokens, `first` and those after it; a lane has two columns.
template <class S>
__device__ __forceinline__ void make_gates(const ChunkedScanJob& job, const ChunkPlace& at,
                                           int first, const ChunkMemory<S>& m,
                                           ChunkStage<S>& stage) {
  const unsigned char(*z_rows)[kTileRowBytes] = m.columns[at.warp].z();
  float2 z[S::kWarpTokens];
#pragma unroll
  for (int t = 0; t < S::kWarpTokens; ++t) {
    unpack_bf16(reinterpret_cast<const std::uint32_t*>(z_rows[t])[at.lane], z[t].x, z[t].y);
    if (__builtin_expect(!job.y_bf16, 0)) z[t] = wide_z(job, at, first + t);
  }
  const std::uint32_t place =
      shared_address(stage.gates) + gate_place(S::row(at.warp * S::kWarpTokens, 0), 2 * at.lane);
  for_each_number<S::kRank>([&](auto rank) {
    constexpr int kRank = decltype(rank)::value;
    float4 weights = make_float4(kGateRate, kGateRate, 1, 1);
    if constexpr (S::kRank > 1) weights = m.gate_weights[kRank][at.lane];
    for_each_number<S::kWarpTokens>([&](auto token) {
      constexpr int kToken = decltype(token)::value;
      constexpr unsigned kRow = S::row(kToken, kRank);
      const float gate[2] = {gate_of(z[kToken].x, weights.x, weights.z),
                             gate_of(z[kToken].y, weights.y, weights.w)};
      store_shared<kRow * kGateRowBytes>(
          place ^ ((kRow % 8) << 5),
          make_uint2(__float_as_uint(gate[0]), __float_as_uint(gate[1])));
    });
  });
}

}  // namespace
}  // namespace mamba3
