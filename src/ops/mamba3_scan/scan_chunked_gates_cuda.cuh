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

// z of a rotating warp's tokens; a lane has two columns.
template <class S>
struct Gates {
  std::uint32_t z[S::kWarpTokens];

  template <bool kWhole>
  __device__ __forceinline__ void load(const ChunkedScanJob& job, const ChunkPlace& at, int first) {
    const __nv_bfloat16* from = job.z + first * job.zx_stride + column_of(at);
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      z[t] = kWhole || first + t < at.end
                 ? __ldg(reinterpret_cast<const std::uint32_t*>(from + t * job.zx_stride))
                 : 0;
    }
  }

  // `first`: the warp's first token. z in fp32 is read here.
  __device__ __forceinline__ void make(const ChunkedScanJob& job, const ChunkPlace& at, int first,
                                       const ChunkMemory<S>& m, ChunkStage<S>& stage) const {
    const std::uint32_t place =
        shared_address(stage.gates) + gate_place(S::row(at.warp * S::kWarpTokens, 0), 2 * at.lane);
    for_each_number<S::kRank>([&](auto rank) {
      constexpr int kRank = decltype(rank)::value;
      float4 weights = make_float4(kGateRate, kGateRate, 1, 1);
      if constexpr (S::kRank > 1) weights = m.gate_weights[kRank][at.lane];
      for_each_number<S::kWarpTokens>([&](auto token) {
        constexpr int kToken = decltype(token)::value;
        constexpr unsigned kRow = S::row(kToken, kRank);
        float2 v;
        unpack_bf16(z[kToken], v.x, v.y);
        if (__builtin_expect(!job.y_bf16, 0)) v = wide(job, at, first + kToken);
        const float2 gate = {gate_of(v.x, weights.x, weights.z),
                             gate_of(v.y, weights.y, weights.w)};
        store_shared<kRow * kGateRowBytes>(
            place ^ ((kRow % 8) << 5),
            make_uint2(__float_as_uint(gate.x), __float_as_uint(gate.y)));
      });
    });
  }

 private:
  static __device__ __forceinline__ int column_of(const ChunkPlace& at) {
    return at.head * kChunkHeadDim + static_cast<int>(2 * at.lane);
  }
  static __device__ __forceinline__ float2 wide(const ChunkedScanJob& job, const ChunkPlace& at,
                                                int token) {
    if (token >= at.end) return make_float2(0, 0);
    const float* from = job.columns.z + token * job.columns.row_stride + column_of(at);
    return make_float2(from[0], from[1]);
  }
};

}  // namespace
}  // namespace mamba3
