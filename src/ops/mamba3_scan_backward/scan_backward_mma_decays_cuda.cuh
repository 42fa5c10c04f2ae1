// Before both passes: what follows from the decays of every chunk's tokens, a chunk by a warp. And
// whether chains of heads are walked.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_chains_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kDecaysThreads = 256;

// As docs/SEMANTICS.md, section 5, has it.
template <class S>
__device__ __forceinline__ void weigh_tokens(const BackwardMmaJob& job, const MmaPlace& at,
                                             const BackwardChunk& chunk, ChunkDecays<S>& out) {
  static_assert(sizeof(ChunkDecays<S>) == ChunkDecays<S>::kBytes);
  constexpr int kOwn = S::kTokens > kWarpLanes ? S::kTokens / kWarpLanes : 1;
  constexpr double kLog2e = 1.4426950408889634;
  const int first = static_cast<int>(at.lane) * kOwn;
  const std::int64_t from = at.head * job.scan.tokens + chunk.begin;
  double sums[kOwn];
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    sums[i] = sum += first + i < chunk.tokens ? job.scan.log_decay[from + first + i] : 0.0;
  }
  sum = warp_inclusive_sum(sum, static_cast<int>(at.lane));
  const double all = __shfl_sync(0xffffffffu, sum, kWarpLanes - 1);
  double before = __shfl_up_sync(0xffffffffu, sum, 1);
  if (at.lane == 0) {
    before = 0;
    out.whole = fast_exp2(static_cast<float>(all * kLog2e));
  }
  if (first >= S::kTokens) return;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int token = first + i;
    const double decay = (before + sums[i]) * kLog2e;
    const auto high = static_cast<float>(decay);
    const float now = token < chunk.tokens ? job.scan.weights[from + token].x : 0.0f;
    const bool followed = chunk.begin + token + 1 < at.end;
    const float fill = now + (followed ? job.scan.weights[from + token + 1].y : 0.0f);
    const float left = fast_exp2(static_cast<float>(all * kLog2e - decay));
    out.terms[token] = {high, static_cast<float>(decay - high), fill, now};
    out.start_decay[token] = fast_exp2(high);
    out.end_decay[token] = left;
    out.fade[token] = left * fill;
  }
}

template <class S>
__global__ void __launch_bounds__(kDecaysThreads)
    chunk_decays_kernel(const __grid_constant__ BackwardMmaJob job) {
  const MmaPlace at(job.scan);
  const int chunks = (at.end - at.begin + S::kTokens - 1) / S::kTokens;
  for (int index = static_cast<int>(at.warp); index < chunks;
       index += kDecaysThreads / kWarpLanes) {
    const BackwardChunk chunk = BackwardChunk::at<S>(at, index);
    weigh_tokens<S>(job, at, chunk, *decays_of<S>(job, at, chunk));
  }
  if (at.head > 0) return;
  const bool chained = walks_chains(job, at);
  for (int t = at.begin + static_cast<int>(threadIdx.x); t < at.end; t += kDecaysThreads) {
    job.chained[t] = chained;
  }
}

}  // namespace
}  // namespace mamba3
