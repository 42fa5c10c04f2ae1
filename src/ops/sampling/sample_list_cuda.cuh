// Few candidates: the blocks list them, and the first block sorts, filters and chooses.
#pragma once

#include "ops/sampling/sample_row_cuda.cuh"

namespace mamba3 {

constexpr int kListParts = kMostListed / kSampleThreads;  // of the list, for each thread

// At least k logits are as large as the k-th largest of the groups' largest.
__device__ inline float group_bound(RowShared& s, int k) {
  if (threadIdx.x < kGroups) {
    const unsigned mine = s.group_keys[threadIdx.x];
    int before = 0;
#pragma unroll 8
    for (int j = 0; j < kGroups; ++j) {
      const unsigned other = s.group_keys[j];
      before += other > mine || (other == mine && j < static_cast<int>(threadIdx.x));
    }
    if (before == k - 1) s.bound = mine;
  }
  __syncthreads();
  return logit_of(s.bound);
}

// Into this block's list, in any order.
__device__ inline void list_candidate(RowShared& s, float logit, int id) {
  const int at = atomicAdd(&s.listed, 1);
  if (at < kMostListed) s.list[at] = ranked(key_of(logit), id);
}

// Brings the blocks' lists together in the first block, when the cluster has added up how many
// candidates each has: sum `which` of those before the last turn. Returns how many there are; when
// they are too many nothing is moved.
__device__ inline int join_lists(RowShared& s, int which, int turn) {
  const unsigned rank = cluster_rank();
  const int count = static_cast<int>(s.totals[which]);
  if (count > kMostListed) return count;
  int first = 0;
  for (unsigned r = 0; r < rank; ++r) first += static_cast<int>(s.sums[turn ^ 1][r][which]);
  const int mine = static_cast<int>(s.sums[turn ^ 1][rank][which]);
  if (rank != 0) {
    for (int i = static_cast<int>(threadIdx.x); i < mine; i += kSampleThreads) {
      *cluster_peer(&s.list[first + i], 0) = s.list[i];
    }
  }
  cluster_sync();
  return count;
}

// Returns how many tokens there are from `bound` on: they are in the first block's list.
__device__ inline int list_from(const Slice& slice, RowShared& s, float bound, int& turn) {
  double count[1] = {0};
  slice.each([&](float logit, int id) {
    if (logit < bound) return;
    list_candidate(s, logit, id);
    count[0] += 1;
  });
  add_over_cluster(s, count, turn);
  return join_lists(s, 0, turn);
}

// The largest first; `count` is a power of two.
__device__ inline void sort_list(Word* list, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int t = static_cast<int>(threadIdx.x); t < count / 2; t += kSampleThreads) {
        const int i = 2 * t - (t & (step - 1)), j = i + step;
        const bool descending = (i & size) == 0;
        const Word a = list[i], b = list[j];
        if ((a < b) == descending) {
          list[i] = b;
          list[j] = a;
        }
      }
    }
  }
  __syncthreads();
}

// The sums in front of each of a thread's weights; returns the sum of all.
template <int N>
__device__ inline double sums_before(RowShared& s, const double (&weights)[N],
                                     double (&before)[N]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  double mine = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) mine += weights[i];
  const double up_to = warp_inclusive_sum(mine, lane);
  __syncthreads();
  if (lane == kWarpLanes - 1) s.warp_sums[warp][0] = up_to;
  __syncthreads();
  double base = 0, all = 0;
  for (int w = 0; w < kSampleWarps; ++w) {
    if (w < warp) base += s.warp_sums[w][0];
    all += s.warp_sums[w][0];
  }
  double front = base + (up_to - mine);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    before[i] = front;
    front += weights[i];
  }
  return all;
}

// What the filters drop becomes 0; what they keep is turned round, so that sorting once more gives
// the order of ids.
__device__ inline void filter_list(RowShared& s, const Row& row, int count, int most,
                                   double total) {
  const int first = static_cast<int>(threadIdx.x) * kListParts;
  double weights[kListParts], before[kListParts];
#pragma unroll
  for (int i = 0; i < kListParts; ++i) {
    const bool there = first + i < min(count, most);
    weights[i] = there ? row.weight(logit_of(static_cast<unsigned>(s.list[first + i] >> 32))) : 0;
  }
  const double all = sums_before(s, weights, before);
  const double mass = static_cast<double>(row.how.top_p) * (total < 0 ? all : total);
#pragma unroll
  for (int i = 0; i < kListParts; ++i) {
    if (first + i >= count) continue;
    const bool in_nucleus = row.how.top_p >= 1 || first + i == 0 || before[i] < mass;
    const bool kept = in_nucleus && weights[i] > 0 && weights[i] >= row.how.min_p;
    const Word word = s.list[first + i];
    s.list[first + i] = kept ? (word << 32) | (word >> 32) : 0;
  }
}

// A thread for each candidate: their order is counted out.
__device__ inline void choose_from_few(const SampleJob& job, const Row& row, std::int64_t index,
                                       RowShared& s, int count, int most, double total,
                                       double draw) {
  static_assert(3 * kMostFew <= kMostListed);
  const int t = static_cast<int>(threadIdx.x);
  Word* const sorted = s.list + kMostFew;
  double* const weights = reinterpret_cast<double*>(sorted + kMostFew);
  if (t < count) {
    const Word mine = s.list[t];
    int before = 0;
    for (int j = 0; j < count; ++j) before += s.list[j] > mine;
    sorted[before] = mine;
  }
  if (t == 0) {
    s.found = kNoLimit;
    s.last = -1;
  }
  __syncthreads();
  const Word mine = t < count ? sorted[t] : 0;
  const int id = static_cast<int>(~static_cast<unsigned>(mine));
  const float logit = logit_of(static_cast<unsigned>(mine >> 32));
  const double weight[1] = {t < min(count, most) ? row.weight(logit) : 0};
  double before[1];
  const double all = sums_before(s, weight, before);
  const double mass = static_cast<double>(row.how.top_p) * (total < 0 ? all : total);
  const bool in_nucleus = row.how.top_p >= 1 || t == 0 || before[0] < mass;
  const bool kept = in_nucleus && weight[0] > 0 && weight[0] >= row.how.min_p;
  weights[t] = kept ? weight[0] : 0;
  __syncthreads();
  if (kept) {
    double below = 0, sum = 0;  // of lower ids, of all
    for (int j = 0; j < min(count, most); ++j) {
      const double other = weights[j];
      sum += other;
      if (static_cast<int>(~static_cast<unsigned>(sorted[j])) < id) below += other;
    }
    atomicMax(&s.last, id);
    if (below + weight[0] > draw * sum) atomicMin(&s.found, id);
  }
  __syncthreads();
  const int chosen = s.found != kNoLimit ? s.found : s.last;
  if (kept && id == chosen) write_token(job, row, index, id, logit);
}

// `total`: the weight of all tokens, or negative where the list holds all that count.
__device__ inline void choose_from_list(const SampleJob& job, const Row& row, std::int64_t index,
                                        RowShared& s, int count, int most, double total,
                                        double draw) {
  if (count <= kMostFew) return choose_from_few(job, row, index, s, count, most, total, draw);
  int padded = 2;
  while (padded < count) padded *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < padded; i += kSampleThreads)
    s.list[i] = 0;
  sort_list(s.list, padded);
  filter_list(s, row, count, most, total);
  sort_list(s.list, padded);
  const int first = static_cast<int>(threadIdx.x) * kListParts;
  double weights[kListParts], before[kListParts];
#pragma unroll
  for (int i = 0; i < kListParts; ++i) {
    const bool kept = first + i < count && s.list[first + i] != 0;
    weights[i] = kept ? row.weight(logit_of(static_cast<unsigned>(s.list[first + i]))) : 0;
  }
  const double target = draw * sums_before(s, weights, before);
  if (threadIdx.x == 0) s.found = -1;
  __syncthreads();
  // The first whose sum is above the target; rounding may leave none: then the last one.
  int crossed = kNoLimit, last = -1;
#pragma unroll
  for (int i = kListParts - 1; i >= 0; --i) {
    if (weights[i] == 0) continue;
    last = max(last, first + i);
    if (before[i] + weights[i] > target) crossed = first + i;
  }
  atomicMax(&s.found, last);
  __syncthreads();
  if (crossed != kNoLimit) atomicMin(&s.found, crossed);
  __syncthreads();
  if (threadIdx.x == 0) {
    const Word word = s.list[s.found];
    write_token(job, row, index, static_cast<int>(~static_cast<unsigned>(word >> 32)),
                logit_of(static_cast<unsigned>(word)));
  }
}

}  // namespace mamba3
