// What the warpgroup with the state brings into a chunk of the chunked scan: x, and the weights
// that follow from the decays.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/mamba3_scan/scan_chunked_gates_cuda.cuh"

namespace mamba3 {
namespace {

// x of all tokens; those behind the end bring zeros. kWhole: there are none of those.
template <class S, bool kWhole>
__device__ __forceinline__ void request_tokens(const ChunkedScanJob& job, const ChunkPlace& at,
                                               int begin, unsigned char* to) {
  constexpr int kTokensAtOnce = kGroupThreads / kRowPieces;
  const unsigned thread = threadIdx.x % kGroupThreads;
  const unsigned piece = thread % kRowPieces;
  const auto first = static_cast<int>(thread / kRowPieces);
  const __nv_bfloat16* from =
      job.x + (begin + first) * job.zx_stride + at.head * kChunkHeadDim + piece * 8;
#pragma unroll
  for (int t = 0; t < S::kTokens; t += kTokensAtOnce) {
    const bool is = kWhole || begin + first + t < at.end;
    __pipeline_memcpy_async(to + swizzled(first + t, piece * 8),
                            is ? static_cast<const void*>(from + t * job.zx_stride) : job.nothing,
                            kPieceBytes, is ? 0 : kPieceBytes);
  }
}

// By a warpgroup.
template <class S>
__device__ __forceinline__ void request_x(const ChunkedScanJob& job, const ChunkPlace& at,
                                          int begin, ChunkStage<S>& stage) {
  if (__builtin_expect(begin + S::kTokens <= at.end, 1)) {
    request_tokens<S, true>(job, at, begin, stage.x);
  } else {
    request_tokens<S, false>(job, at, begin, stage.x);
  }
  __pipeline_commit();
}

// x of the chunk's token `kept`, in fp32, as the op was given it.
template <class S>
__device__ __forceinline__ void keep_x(const ChunkedScanJob& job, const ChunkPlace& at, int begin,
                                       int kept, ChunkStage<S>& stage) {
  for (int p = static_cast<int>(at.lane); p < kChunkHeadDim; p += kWarpLanes) {
    const std::int64_t token = begin + kept;
    const int column = at.head * kChunkHeadDim + p;
    stage.kept.x[p] = job.y_bf16 ? __bfloat162float(job.x[token * job.zx_stride + column])
                                 : job.columns.x[token * job.columns.row_stride + column];
  }
}

// Of the chunk's tokens that a lane has. Those behind the end have none.
template <class S>
struct Decays {
  static constexpr int kOwn = S::kTokens > kWarpLanes ? S::kTokens / kWarpLanes : 1;
  double log_decay[kOwn];
  float now[kOwn];
  float carry[kOwn];  // (1 - lam) dt of the token behind

  static __device__ __forceinline__ bool has_tokens(unsigned lane) {
    return lane * kOwn < S::kTokens;
  }

  __device__ __forceinline__ void load(const ChunkedScanJob& job, const ChunkPlace& at, int begin) {
    const std::int64_t from = at.head * job.tokens;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int token = begin + static_cast<int>(at.lane * kOwn) + i;
      const bool is = has_tokens(at.lane) && token < at.end;
      log_decay[i] = is ? __ldg(job.log_decay + from + token) : 0.0;
      now[i] = is ? __ldg(&job.weights[from + token].x) : 0.0f;
      carry[i] = is && token + 1 < at.end ? __ldg(&job.weights[from + token + 1].y) : 0.0f;
    }
  }

  // Running sums in double, and every weight that follows from them. `last_joins`: the next token's
  // share of the last one's weight is not left to the next stretch.
  __device__ __forceinline__ void weigh(unsigned lane, bool last_joins,
                                        ChunkStage<S>& stage) const {
    constexpr double kLog2e = 1.4426950408889634;
    double sums[kOwn];
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sums[i] = sum += log_decay[i];
#pragma unroll
    for (unsigned step = 1; step < kWarpLanes; step *= 2) {
      const double below = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += below;
    }
    const double all = __shfl_sync(0xffffffffu, sum, kWarpLanes - 1);
    double before = __shfl_up_sync(0xffffffffu, sum, 1);
    if (lane == 0) before = 0;
    if (lane == 0) stage.chunk_decay = fast_exp2(static_cast<float>(all * kLog2e));
    if (!has_tokens(lane)) return;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const unsigned token = lane * kOwn + i;
      const double decay = (before + sums[i]) * kLog2e;
      const auto high = static_cast<float>(decay);
      const bool joins = token + 1 < S::kTokens || last_joins;
      const float fill = now[i] + (joins ? carry[i] : 0.0f);
      stage.terms[token] = {high, static_cast<float>(decay - high), fill, now[i]};
      stage.start_decay[token] = fast_exp2(high);
      const float fade = fast_exp2(static_cast<float>(all * kLog2e - decay)) * fill;
#pragma unroll
      for (unsigned r = 0; r < S::kRank; ++r) stage.fade[S::row(token, r)] = fade;
    }
  }
};

}  // namespace
}  // namespace mamba3
