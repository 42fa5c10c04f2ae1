// The decays of a chunk's tokens, and every weight that follows from them: by one warp.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/mamba3_scan/scan_mma_memory_cuda.cuh"

namespace mamba3 {
namespace {

// Asks for the decays of tokens [begin, begin + tokens) and their weights, with those of the token
// behind: by one warp. Behind the end stand zeros.
template <class S>
__device__ __forceinline__ void request_decays(const MmaScanJob& job, const MmaPlace& at, int begin,
                                               int tokens, MmaMemory<S>& m) {
  const std::int64_t from = at.head * job.tokens + begin;
  for (int t = static_cast<int>(at.lane); t <= tokens; t += kWarpLanes) {
    const bool is = begin + t < at.end;
    const std::int64_t own = is ? from + t : 0;
    const std::size_t zeros = is ? 0 : sizeof(double);
    __pipeline_memcpy_async(&m.weights[t], job.weights + own, sizeof(float2), zeros);
    if (t < tokens) {
      __pipeline_memcpy_async(&m.log_decay[t], job.log_decay + own, sizeof(double), zeros);
    }
  }
}

// What follows from them, by the same warp, when they are there. A lane has kOwn neighbours.
template <class S>
__device__ __forceinline__ void weigh(const MmaScanJob& job, const MmaPlace& at,
                                      const MmaChunk& chunk, MmaMemory<S>& m) {
  constexpr int kOwn = S::kRows / kWarpLanes;
  constexpr double kLog2e = 1.4426950408889634;
  const auto tokens = static_cast<unsigned>(chunk.tokens);
  const bool is = at.lane * kOwn < tokens;
  double sums[kOwn];
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) sums[i] = sum += is ? m.log_decay[at.lane * kOwn + i] : 0.0;
  sum = warp_inclusive_sum(sum, static_cast<int>(at.lane));
  const double all = __shfl_sync(0xffffffffu, sum, kWarpLanes - 1);
  double before = __shfl_up_sync(0xffffffffu, sum, 1);
  if (at.lane == 0) {
    before = 0;
    m.chunk_decay = fast_exp2(static_cast<float>(all * kLog2e));
  }
  if (!is) return;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const unsigned token = at.lane * kOwn + i;
    const double decay = (before + sums[i]) * kLog2e;
    const auto high = static_cast<float>(decay);
    const bool joins = token + 1 < tokens || chunk.last_joins;
    const float now = m.weights[token].x;
    const float fill = now + (joins ? m.weights[token + 1].y : 0.0f);
    m.terms[token] = {high, static_cast<float>(decay - high), fill, now};
    m.start_decay[token] = fast_exp2(high);
    const float fade = fast_exp2(static_cast<float>(all * kLog2e - decay)) * fill;
    const unsigned row = token << S::rank_bits(job);
    for (unsigned r = 0; r < 1u << S::rank_bits(job); ++r) m.fade[row + r] = fade;
  }
}

}  // namespace
}  // namespace mamba3
