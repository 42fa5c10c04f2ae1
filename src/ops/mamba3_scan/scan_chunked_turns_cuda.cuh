// The phases of the chunked scan: sums of the steps by which a head's tokens turn its pairs. The
// warpgroup that has the state makes them, two chunks ahead; a lane has an angle and a part of a
// chunk's tokens.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_memory_cuda.cuh"

namespace mamba3 {
namespace {

// turns_moved without its branch: right for a step that is `small`.
__device__ __forceinline__ std::uint32_t small_turns_moved(double half_tanh, double turning,
                                                           bool& small) {
  const double step = __dmul_rn(half_tanh, turning);
  small = (__double2hiint(step) & 0x7fffffff) < 0x41200000;
  return units_of_step(step);
}

template <class S>
struct Turner {
  static constexpr unsigned kParts = ChunkTurns<S>::kParts;
  static constexpr int kTokens = ChunkTurns<S>::kTokens;
  static constexpr unsigned kAnglesAtOnce = kWarpLanes / kParts;
  static constexpr int kRow = S::kTurned * kWarpLanes;  // of half_tanh
  std::uint32_t start[S::kTurned];                      // before the next chunk
  // Of the next chunk to be requested: the lane's first token and angle, and its first `turning`.
  const double* tanh_from;
  const double* turning_from;

  // `turns`: before the first chunk, [s].
  __device__ __forceinline__ Turner(const ChunkedScanJob& job, const ChunkPlace& at,
                                    const std::uint32_t* turns)
      : tanh_from(job.half_tanh + (std::int64_t{at.begin} + first_token(at)) * kRow +
                  angle_of(at, 0)),
        turning_from(job.turning + at.head * job.tokens + at.begin + at.lane) {
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      const auto angle = static_cast<int>(angle_of(at, j));
      start[j] = angle < job.sizes.angles ? turns[angle] : 0;
    }
  }

  // A lane brings what it reads itself, but for `turning`. Tokens behind the end turn nothing.
  __device__ __forceinline__ void request(const ChunkedScanJob& job, const ChunkPlace& at,
                                          int begin, ChunkMemory<S>& m) {
    if (__builtin_expect(begin + S::kTokens <= at.end, 1)) {
      request_tokens<true>(job, at, begin, m.turn_inputs[at.warp % S::kTurningWarps]);
    } else {
      request_tokens<false>(job, at, begin, m.turn_inputs[at.warp % S::kTurningWarps]);
    }
    tanh_from += S::kTokens * kRow;
    turning_from += S::kTokens;
  }

  // When what was requested is there.
  __device__ __forceinline__ void make(const ChunkPlace& at, const ChunkMemory<S>& m,
                                       ChunkTurns<S>& to) {
    const TurnInputs<S>& in = m.turn_inputs[at.warp % S::kTurningWarps];
    const unsigned part = part_of(at);
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      std::uint32_t turns[kTokens];
      bool broken = false;
      const std::uint32_t own = sum(in, at, j, turns, broken);
      std::uint32_t sums = own;  // of this and the parts before
#pragma unroll
      for (unsigned step = 1; step < kParts; step *= 2) {
        const std::uint32_t before = __shfl_up_sync(0xffffffffu, sums, step * kAnglesAtOnce);
        if (part >= step) sums += before;
      }
      const std::uint32_t from = start[j] + sums - own;
      start[j] +=
          __shfl_sync(0xffffffffu, sums, kWarpLanes - kAnglesAtOnce + at.lane % kAnglesAtOnce);
      const unsigned angle = angle_of(at, j);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) to.parts[part].turns[t][angle] = from + turns[t];
      // Lanes, but for the angle's number.
      constexpr std::uint32_t kSameAngle = kParts == 4 ? 0x01010101u : 0x00010001u;
      const bool any =
          (__ballot_sync(0xffffffffu, broken) & (kSameAngle << at.lane % kAnglesAtOnce)) != 0;
      if (part == 0) to.broken[angle] = any ? nanf("") : 0.0f;
    }
  }

  __device__ __forceinline__ void store(const ChunkedScanJob& job, const ChunkPlace& at,
                                        std::uint32_t* to) const {
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      const auto angle = static_cast<int>(angle_of(at, j));
      if (part_of(at) == 0 && angle < job.sizes.angles) to[angle] = start[j];
    }
  }

 private:
  static __device__ __forceinline__ unsigned part_of(const ChunkPlace& at) {
    return at.lane / kAnglesAtOnce;
  }
  static __device__ __forceinline__ int first_token(const ChunkPlace& at) {
    return static_cast<int>(part_of(at)) * kTokens;
  }
  static __device__ __forceinline__ unsigned angle_of(const ChunkPlace& at, int j) {
    return (j * S::kTurningWarps + at.warp % kGroupWarps) * kAnglesAtOnce + at.lane % kAnglesAtOnce;
  }

  template <bool kWhole>
  __device__ __forceinline__ void request_tokens(const ChunkedScanJob& job, const ChunkPlace& at,
                                                 int begin, TurnInputs<S>& to) const {
    const auto bring = [&](double* place, const double* from, int token) {
      const bool is = kWhole || begin + token < at.end;
      __pipeline_memcpy_async(place, is ? static_cast<const void*>(from) : job.nothing,
                              sizeof(double), is ? 0 : sizeof(double));
    };
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        bring(&to.half_tanh[j][t][at.lane], tanh_from + t * kRow + j * kWarpLanes,
              first_token(at) + t);
      }
    }
#pragma unroll
    for (int i = 0; i < S::kTokens; i += kWarpLanes) {
      const int token = i + static_cast<int>(at.lane);
      if (token < S::kTokens) bring(&to.turning[token], turning_from + i, token);
    }
  }

  static __device__ __forceinline__ std::uint32_t sum(const TurnInputs<S>& in, const ChunkPlace& at,
                                                      int j, std::uint32_t (&turns)[kTokens],
                                                      bool& broken) {
    const double* turning = in.turning + part_of(at) * kTokens;
    std::uint32_t sum = 0;
    bool all_small = true;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      bool small;
      turns[t] = sum += small_turns_moved(in.half_tanh[j][t][at.lane], turning[t], small);
      all_small = all_small && small;
    }
    if (__builtin_expect(all_small, 1)) return sum;
    sum = 0;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      bool finite = true;
      turns[t] = sum += turns_moved(in.half_tanh[j][t][at.lane], turning[t], finite);
      broken = broken || !finite;
    }
    return sum;
  }
};

}  // namespace
}  // namespace mamba3
