// One row of logits as the blocks of a cluster share it: each holds a slice, and what they find out
// is exchanged through their shared memory. All sums are added in a fixed order.
#pragma once

#include <math_constants.h>

#include <cstdint>

#include "device/cluster.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/sampling/sample_rows.h"

namespace mamba3 {

constexpr int kSampleThreads = 256;
constexpr int kSampleWarps = kSampleThreads / kWarpLanes;
constexpr unsigned kMostClusterBlocks = 8;
constexpr int kGroups = 128;              // of threads of a cluster, each with its largest logit
constexpr int kMostListed = 1024;         // candidates that one block sorts
constexpr int kMostFew = kSampleThreads;  // candidates with a thread for each
constexpr int kPivots = 7;
constexpr int kSums = 2 * kPivots + 1;
constexpr int kNoLimit = 0x7fffffff;
using Word = unsigned long long;

// Numbers in the order of their keys; no key is 0. NaNs do not come here.
__device__ __forceinline__ unsigned key_of(float logit) {
  const unsigned bits = __float_as_uint(logit);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of(unsigned key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
// The more likely is larger; of equals the lower id.
__device__ __forceinline__ Word ranked(unsigned key, int id) {
  return (static_cast<Word>(key) << 32) | static_cast<unsigned>(~id);
}

// The first tokens in that order, as one block sees them: all above `key`, and of those at `key`
// the ids up to `last_id`.
struct Cut {
  unsigned key = 0;
  int last_id = kNoLimit;
  __device__ bool keeps(unsigned other, int id) const {
    return other > key || (other == key && id <= last_id);
  }
};

struct alignas(16) RowShared {  // the staged logits follow
  Word list[kMostListed];       // candidates: this block's, then in the first block all
  double sums[2][kMostClusterBlocks][kSums];  // of each block; two, used in turn
  double warp_sums[kSampleWarps][kSums];
  double totals[kSums];
  Word best[kMostClusterBlocks];
  Word warp_best[kSampleWarps];
  unsigned group_keys[kGroups];
  int bad[kMostClusterBlocks];
  int listed;  // in this block's list; what does not fit is counted too
  unsigned bound;
  int found, last;
};

// This block's part of a row.
struct Slice {
  const float* logits;
  int first_id;
  int count;
  int warp_begin, warp_end;  // this warp's elements

  __device__ Slice(const float* logits_in, int first_id_in, int count_in)
      : logits(logits_in), first_id(first_id_in), count(count_in) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    const int share = (count + kSampleWarps - 1) / kSampleWarps;
    warp_begin = min(warp * share, count);
    warp_end = min(warp_begin + share, count);
  }
  // -0 and 0 are equal.
  __device__ float at(int i) const { return logits[i] + 0.0f; }

  // This warp's elements, use(logit, id).
  template <class Use>
  __device__ void each(const Use& use) const {
#pragma unroll 4
    for (int i = warp_begin + static_cast<int>(threadIdx.x) % kWarpLanes; i < warp_end;
         i += kWarpLanes) {
      use(at(i), first_id + i);
    }
  }
};

// Adds N sums of every thread over the cluster: all threads find them in s.totals, those of each
// block in s.sums[turn before the call], those of each warp in s.warp_sums.
template <int N>
__device__ void add_over_cluster(RowShared& s, const double (&mine)[N], int& turn) {
  static_assert(N <= kSums);
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const double sum = warp_sum(mine[i]);
    if (threadIdx.x % kWarpLanes == 0) s.warp_sums[warp][i] = sum;
  }
  __syncthreads();
  const int t = static_cast<int>(threadIdx.x);
  const unsigned rank = cluster_rank(), blocks = cluster_blocks();
  if (t < N) {
    double sum = 0;
    for (int w = 0; w < kSampleWarps; ++w) sum += s.warp_sums[w][t];
    for (unsigned r = 0; r < blocks; ++r) *cluster_peer(&s.sums[turn][rank][t], r) = sum;
  }
  cluster_sync();
  if (t < N) {
    double sum = 0;
    for (unsigned r = 0; r < blocks; ++r) sum += s.sums[turn][r][t];
    s.totals[t] = sum;
  }
  __syncthreads();
  turn ^= 1;
}

// Which of `count` parts, read by part(i), the running sum `before` crosses `target` in. `before`
// becomes the sum in front of it. Where rounding leaves all of them below the target it is the last
// one that is not empty, and its last candidate is meant.
template <class Part>
__device__ int crossed_part(int count, double& before, double& target, const Part& part) {
  double sum = before;
  int last = 0;
  double before_last = before;
  for (int i = 0; i < count; ++i) {
    const double value = part(i);
    if (value > 0) {
      last = i;
      before_last = sum;
    }
    if (sum + value > target) {
      before = sum;
      return i;
    }
    sum += value;
  }
  before = before_last;
  target = CUDART_INF;
  return last;
}

// exp(x) of a number that is not positive, to a few units of the last place; 0 below -700.
__device__ __forceinline__ double exp_not_positive(double x) {
  if (x < -700) return 0;
  constexpr double kShift =
      6755399441055744.0;  // 1.5 * 2^52: leaves a whole number in the low bits
  const double shifted = fma(x, 1.4426950408889634, kShift);
  const double n = shifted - kShift;
  const double r = fma(n, -1.90821492927058770e-10, fma(n, -6.93147180369123816e-01, x));
  // 1 / 11!, 1 / 10!, ...
  constexpr double kTerms[] = {2.505210838544172e-8,
                               2.755731922398589e-7,
                               2.755731922398589e-6,
                               2.48015873015873e-5,
                               1.984126984126984e-4,
                               1.388888888888889e-3,
                               8.333333333333333e-3,
                               4.166666666666667e-2,
                               1.666666666666667e-1,
                               0.5,
                               1.0,
                               1.0};
  double sum = kTerms[0];
#pragma unroll
  for (int i = 1; i < 12; ++i) sum = fma(sum, r, kTerms[i]);
  return __hiloint2double(__double2hiint(sum) + (__double2loint(shifted) << 20),
                          __double2loint(sum));
}

// Philox 4x32-10, as uniform_draw.cpp has it.
__device__ inline double device_uniform_draw(std::uint64_t seed, std::uint64_t stream,
                                             std::uint64_t position) {
  unsigned c0 = static_cast<unsigned>(position), c1 = static_cast<unsigned>(position >> 32);
  unsigned c2 = static_cast<unsigned>(stream), c3 = static_cast<unsigned>(stream >> 32);
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const unsigned a_high = __umulhi(0xd2511f53u, c0), a_low = 0xd2511f53u * c0;
    const unsigned b_high = __umulhi(0xcd9e8d57u, c2), b_low = 0xcd9e8d57u * c2;
    c0 = b_high ^ c1 ^ k0;
    c1 = b_low;
    c2 = a_high ^ c3 ^ k1;
    c3 = a_low;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  const Word word = (static_cast<Word>(c1) << 32) | c0;
  return static_cast<double>(word >> 11) * 0x1p-53;
}

struct SampleJob {
  const float* logits;
  std::int64_t stride;
  int vocab;
  int slice;  // elements for each block of a cluster, a multiple of 4
  bool vectors;
  RowSampling* rows;
  std::int32_t* next_ids;
  SampledToken* out;
};

// What a row's filters look at.
struct Row {
  RowSampling how;
  float largest = 0;
  int largest_id = 0;
  double raw_sum = 0;   // of exp(logit - largest)
  double coldness = 0;  // 1 / temperature

  __device__ double weight(float logit) const {
    return exp_not_positive((static_cast<double>(logit) - largest) * coldness);
  }
};

__device__ inline void write_token(const SampleJob& job, const Row& row, std::int64_t index, int id,
                                   float logit) {
  const double logprob = (static_cast<double>(logit) - row.largest) - log(row.raw_sum);
  job.next_ids[index] = id;
  job.out[index] = {id, static_cast<float>(logprob), SampleStatus::kOk};
}

}  // namespace mamba3
