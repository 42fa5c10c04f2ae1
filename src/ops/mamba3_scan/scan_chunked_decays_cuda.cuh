// The weights that follow from a chunk's decays, by two warps of those that have the state.
//
// The state is not multiplied for every chunk: it is kept divided by what it has decayed since, and
// so is what chunks add to it, as long as that is more than 2^-16 and no stretch of the grid ends.
#pragma once

#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/mamba3_scan/scan_chunked_gates_cuda.cuh"

namespace mamba3 {
namespace {

constexpr std::int64_t kMostScale = static_cast<std::int64_t>(16 / kDecayUnit);

// Of the chunk's tokens that a lane has. Those behind the end have none. Where a chunk has fewer
// tokens than a warp has lanes, the other lanes have its last token too, and write the same of it:
// that is shorter than a branch.
template <class S>
struct Decays {
  static constexpr int kOwn = S::kTokens > kWarpLanes ? S::kTokens / kWarpLanes : 1;
  static constexpr int kMostCrossed = (S::kTokens + kDecayTokens - 2) / kDecayTokens;
  // Of the next chunk to be loaded: the lane's first token's.
  const std::int64_t* sums_from;
  const float2* weights_from;
  std::int64_t own[kOwn];  // sums within their 32 tokens
  std::int64_t before;     // the sum of those that the chunk begins in the middle of
  float now[kOwn];
  float carry[kOwn];  // (1 - lam) dt of the token behind
  // What the state before the chunk is still to be multiplied with, as a logarithm in kDecayUnit.
  std::int64_t scale = 0;

  static __device__ __forceinline__ int first_token(unsigned lane) {
    return min(static_cast<int>(lane) * kOwn, S::kTokens - kOwn);
  }

  // Before the first chunk.
  __device__ __forceinline__ void start(const ChunkedScanJob& job, const ChunkPlace& at) {
    const std::int64_t first = at.head * job.tokens + at.begin;
    sums_from = job.decays + first + first_token(at.lane);
    weights_from = job.weights + first + first_token(at.lane);
    before = at.begin % kDecayTokens == 0 ? 0 : __ldg(job.decays + first - 1);
    load(at, at.begin);
  }

  // Of the chunk from `begin` on.
  __device__ __forceinline__ void load(const ChunkPlace& at, int begin) {
    const int there = at.end - begin;  // tokens
    if (there <= 0) return;
    if (__builtin_expect(there > S::kTokens, 1)) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        own[i] = __ldg(sums_from + i);
        now[i] = __ldg(&weights_from[i].x);
        carry[i] = __ldg(&weights_from[i + 1].y);
      }
    } else {
      load_last(at.lane, there);
    }
    sums_from += S::kTokens;
    weights_from += S::kTokens;
  }

  // The weights that follow, by two warps: what a chunk's tokens are to each other, and what they
  // and the state are to the state before and behind it. `begin`, `end`: of the chunk, as far as it
  // is there. `last_joins`: the next token's share of the last one's weight is not left to the next
  // stretch. `ends`: a stretch of the grid or the sequence ends with the chunk.
  __device__ __forceinline__ void weigh_pairs(unsigned lane, int begin, int end, bool last_joins,
                                              ChunkWeights<S>& to) {
    count_from_start(lane, begin, end);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int token = first_token(lane) + i;
      const float high = in_units(own[i]);
      const float low = in_units(own[i] - __float2ll_rn(high * static_cast<float>(1 / kDecayUnit)));
      to.terms[token] = {high, low, fill(i, token, last_joins), now[i]};
    }
  }
  __device__ __forceinline__ void weigh_state(unsigned lane, int begin, int end, bool last_joins,
                                              bool ends, ChunkWeights<S>& to) {
    const std::int64_t start = scale;
    const std::int64_t behind = start + count_from_start(lane, begin, end);
    const bool folds = ends || behind < -kMostScale;
    const std::int64_t base = folds ? behind : 0;
    scale = behind - base;
    to.chunk_decay = fast_exp2(in_units(base));
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int token = first_token(lane) + i;
      const std::int64_t decay = start + own[i];
      to.start_decay[token] = fast_exp2(in_units(decay));
      to.fade[token] = fast_exp2(in_units(base - decay)) * fill(i, token, last_joins);
      if (token + 1 == S::kTokens) to.carry = carry[i];
    }
  }

 private:
  static __device__ __forceinline__ float in_units(std::int64_t decay) {
    return __ll2float_rn(decay) * static_cast<float>(kDecayUnit);
  }
  // The weight of an own token's outer product behind it.
  __device__ __forceinline__ float fill(int i, int token, bool last_joins) const {
    return now[i] + (token + 1 < S::kTokens || last_joins ? carry[i] : 0.0f);
  }
  // Own sums become those from the chunk's start on: what is left at a token of the state before.
  // Returns the last token's.
  __device__ __forceinline__ std::int64_t count_from_start(unsigned lane, int begin, int end) {
    const int first_end = ~begin & (kDecayTokens - 1);  // the token that ends the first sum
    // Zero, but the compiler shall not know: what it knows to be the same in all lanes goes through
    // registers that answer later.
    const unsigned first_lane = lane / kWarpLanes * kWarpLanes;
    const std::int64_t last = __shfl_sync(0xffffffffu, own[kOwn - 1], first_lane + kWarpLanes - 1);
    std::int64_t crossed[kMostCrossed];  // the sums that end in the chunk
#pragma unroll
    for (int k = 0; k < kMostCrossed; ++k) {
      const int token = first_end + k * kDecayTokens;
      const std::int64_t sum = kOwn > 1 && token % kOwn == 0 ? own[0] : own[kOwn - 1];
      crossed[k] = __shfl_sync(0xffffffffu, sum, first_lane + token / kOwn);
    }
    const auto from_start = [&](std::int64_t sum, int token) {
      sum -= before;
#pragma unroll
      for (int k = 0; k < kMostCrossed; ++k) {
        if (token > first_end + k * kDecayTokens) sum += crossed[k];
      }
      return sum;
    };
    const int last_token = end - 1 - begin;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      own[i] = from_start(own[i], min(first_token(lane) + i, last_token));
    }
    const std::int64_t all = from_start(last, last_token);
    before = end % kDecayTokens == 0 ? 0 : last;
    return all;
  }

  // A chunk behind which no token is, `there` of whose tokens are.
  __device__ __forceinline__ void load_last(unsigned lane, int there) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int left = there - 1 - (first_token(lane) + i);  // tokens behind this one
      own[i] = __ldg(sums_from + i + min(left, 0));
      now[i] = left >= 0 ? __ldg(&weights_from[i].x) : 0.0f;
      carry[i] = left > 0 ? __ldg(&weights_from[i + 1].y) : 0.0f;
    }
  }
};

}  // namespace
}  // namespace mamba3
