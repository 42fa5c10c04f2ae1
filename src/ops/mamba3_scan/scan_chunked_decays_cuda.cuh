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

// Of the chunk's tokens that a lane has. Those behind the end have none.
template <class S>
struct Decays {
  static constexpr int kOwn = S::kTokens > kWarpLanes ? S::kTokens / kWarpLanes : 1;
  static constexpr int kMostCrossed = (S::kTokens + kDecayTokens - 2) / kDecayTokens;
  // Sums within their 32 tokens: of own tokens, and of the chunk's last; those before the chunk,
  // and of the 32 that end in it.
  std::int64_t own[kOwn];
  std::int64_t last;
  std::int64_t before;
  std::int64_t crossed[kMostCrossed];
  float now[kOwn];
  float carry[kOwn];  // (1 - lam) dt of the token behind
  // What the state before the chunk is still to be multiplied with, as a logarithm in kDecayUnit.
  std::int64_t scale = 0;

  static __device__ __forceinline__ bool has_tokens(unsigned lane) {
    return lane * kOwn < S::kTokens;
  }

  __device__ __forceinline__ void load(const ChunkedScanJob& job, const ChunkPlace& at, int begin) {
    if (begin >= at.end) return;
    const std::int64_t* const from = job.decays + at.head * job.tokens;
    const float2* const weights = job.weights + at.head * job.tokens;
    const int end = min(begin + S::kTokens, at.end) - 1;
    const int first_end = begin / kDecayTokens * kDecayTokens + kDecayTokens - 1;
    before = begin % kDecayTokens == 0 ? 0 : __ldg(from + begin - 1);
    last = __ldg(from + end);
#pragma unroll
    for (int i = 0; i < kMostCrossed; ++i) {
      const int token = first_end + i * kDecayTokens;
      crossed[i] = token < end ? __ldg(from + token) : 0;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int token = begin + static_cast<int>(at.lane * kOwn) + i;
      const bool is = has_tokens(at.lane) && token < at.end;
      own[i] = __ldg(from + min(token, end));
      now[i] = is ? __ldg(&weights[token].x) : 0.0f;
      carry[i] = is && token + 1 < at.end ? __ldg(&weights[token + 1].y) : 0.0f;
    }
  }

  // The weights that follow, by two warps: what a chunk's tokens are to each other, and what they
  // and the state are to the state before and behind it. `begin`, `end`: of the chunk, as far as it
  // is there. `last_joins`: the next token's share of the last one's weight is not left to the next
  // stretch. `ends`: a stretch of the grid or the sequence ends with the chunk.
  __device__ __forceinline__ void weigh_pairs(unsigned lane, int begin, int end, bool last_joins,
                                              ChunkWeights<S>& to) const {
    if (!has_tokens(lane)) return;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const unsigned token = lane * kOwn + i;
      const std::int64_t decay = at_token(i, token, begin, end);
      const float high = in_units(decay);
      const float low = in_units(decay - __float2ll_rn(high * static_cast<float>(1 / kDecayUnit)));
      to.terms[token] = {high, low, fill(i, token, last_joins), now[i]};
    }
  }
  __device__ __forceinline__ void weigh_state(unsigned lane, int begin, int end, bool last_joins,
                                              bool ends, ChunkWeights<S>& to) {
    const std::int64_t start = scale;
    const std::int64_t behind = start + from_start(last, begin, end - 1);
    const bool folds = ends || behind < -kMostScale;
    const std::int64_t base = folds ? behind : 0;
    scale = behind - base;
    if (lane == 0) to.chunk_decay = fast_exp2(in_units(base));
    if (!has_tokens(lane)) return;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const unsigned token = lane * kOwn + i;
      const std::int64_t decay = start + at_token(i, token, begin, end);
      to.start_decay[token] = fast_exp2(in_units(decay));
      to.fade[token] = fast_exp2(in_units(base - decay)) * fill(i, token, last_joins);
    }
  }

 private:
  static __device__ __forceinline__ float in_units(std::int64_t decay) {
    return __ll2float_rn(decay) * static_cast<float>(kDecayUnit);
  }
  // The weight of an own token's outer product behind it.
  __device__ __forceinline__ float fill(int i, unsigned token, bool last_joins) const {
    return now[i] + (token + 1 < S::kTokens || last_joins ? carry[i] : 0.0f);
  }
  __device__ __forceinline__ std::int64_t at_token(int i, unsigned token, int begin,
                                                   int end) const {
    return from_start(own[i], begin, min(begin + static_cast<int>(token), end - 1));
  }
  // What is left at a token of the state before the chunk.
  __device__ __forceinline__ std::int64_t from_start(std::int64_t sum, int begin, int token) const {
    sum -= before;
#pragma unroll
    for (int i = 0; i < kMostCrossed; ++i) {
      if (token / kDecayTokens - begin / kDecayTokens > i) sum += crossed[i];
    }
    return sum;
  }
};

}  // namespace
}  // namespace mamba3
