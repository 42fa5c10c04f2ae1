// What the read-outs of the chunked scan are multiplied with: silu of z for every rank.
#pragma once

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

__device__ __forceinline__ float4 unpack_bf16(uint2 bits) {
  float4 out;
  unpack_bf16(bits.x, out.x, out.y);
  unpack_bf16(bits.y, out.z, out.w);
  return out;
}

// z of a rotating warp's tokens: half the lanes have a token's, four columns each.
template <class S>
struct Gates {
  static constexpr int kPieces = S::kWarpTokens / 2;
  uint2 z[kPieces];

  template <bool kWhole>
  __device__ __forceinline__ void load(const ChunkedScanJob& job, const ChunkPlace& at, int first) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int token = first + static_cast<int>(2 * i + at.lane / 16);
      z[i] = kWhole || token < at.end
                 ? __ldg(reinterpret_cast<const uint2*>(job.z + token * job.zx_stride +
                                                        column_of(at)))
                 : make_uint2(0, 0);
    }
  }

  // `first`: the warp's first token. z in fp32 is read here.
  __device__ __forceinline__ void make(const ChunkedScanJob& job, const ChunkPlace& at, int first,
                                       const ChunkMemory<S>& m, ChunkStage<S>& stage) const {
    const unsigned p = at.lane % 16 * 4;
    // The warp's rows begin at a multiple of eight, or at half of one.
    const unsigned row = S::row(at.warp * S::kWarpTokens + at.lane / 16, 0);
    const std::uint32_t place = shared_address(stage.gates) + gate_place(row, p);
    for_each_number<S::kRank>([&](auto rank) {
      constexpr int kRank = decltype(rank)::value;
      float4 rate = make_float4(kGateRate, kGateRate, kGateRate, kGateRate);
      float4 scale = make_float4(1, 1, 1, 1);
      if constexpr (S::kRank > 1) {
        rate = *reinterpret_cast<const float4*>(&m.gate_rate[kRank][p]);
        scale = *reinterpret_cast<const float4*>(&m.gate_scale[kRank][p]);
      }
      for_each_number<kPieces>([&](auto piece) {
        constexpr int kPiece = decltype(piece)::value;
        constexpr unsigned kRow = S::row(2 * kPiece, kRank);
        float4 v = unpack_bf16(z[kPiece]);
        if (__builtin_expect(!job.y_bf16, 0)) v = wide(job, at, first + static_cast<int>(2 * kPiece + at.lane / 16));
        const float4 gate = {gate_of(v.x, rate.x, scale.x), gate_of(v.y, rate.y, scale.y),
                             gate_of(v.z, rate.z, scale.z), gate_of(v.w, rate.w, scale.w)};
        store_shared_piece<kRow * kChunkHeadDim * 4>(place ^ ((kRow % 8) << 5), gate);
      });
    });
  }

 private:
  static __device__ __forceinline__ int column_of(const ChunkPlace& at) {
    return at.head * kChunkHeadDim + static_cast<int>(at.lane % 16 * 4);
  }
  static __device__ __forceinline__ float4 wide(const ChunkedScanJob& job, const ChunkPlace& at,
                                                int token) {
    if (token >= at.end) return make_float4(0, 0, 0, 0);
    const float* from = job.columns.z + token * job.columns.row_stride + column_of(at);
    return make_float4(from[0], from[1], from[2], from[3]);
  }
};

}  // namespace
}  // namespace mamba3
