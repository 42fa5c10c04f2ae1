// One cluster of blocks samples one row. Its logits are read from memory once, into the blocks'
// shared memory, where they fit. Most rows need few tokens: those are collected in one block, which
// sorts them. Where they may be many, the last token that a filter keeps is found by narrowing an
// interval of logits, and the choice is made by walking over the row.
#include <algorithm>
#include <cmath>

#include "ops/cuda_ops.h"
#include "ops/launch.cuh"
#include "ops/sampling/sample_row_cuda.cuh"

namespace mamba3 {
namespace {

// Filters that keep so few are bounded from below by the largest logits of the groups.
constexpr int kMostGroupTopK = 112;
constexpr int kListParts = kMostListed / kSampleThreads;    // of the list, for each thread
constexpr std::size_t kMostStagedBytes = 96 << 10;          // what every card has
constexpr std::size_t kMostClusterStagedBytes = 200 << 10;  // what those with clusters have

struct SampleJob {
  const float* logits;
  std::int64_t stride;
  int vocab;
  int slice;  // elements for each block of a cluster, a multiple of 4
  bool staged;
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

__device__ void write_token(const SampleJob& job, const Row& row, std::int64_t index, int id,
                            float logit) {
  const double logprob = (static_cast<double>(logit) - row.largest) - log(row.raw_sum);
  job.next_ids[index] = id;
  job.out[index] = {id, static_cast<float>(logprob), SampleStatus::kOk};
}

// What a thread finds while the row comes in, id after id.
struct Seen {
  float largest;
  int id = kNoLimit;
  bool bad = false;  // NaN or +infinity
  __device__ Seen() : largest(-INFINITY) {}
  __device__ void take(float logit, int next_id) {
    bad = bad || !(logit < CUDART_INF_F);
    if (logit > largest) {
      largest = logit;
      id = next_id;
    }
  }
};

__device__ Seen load_slice(const SampleJob& job, const float* from, int first_id, int count,
                           float* to) {
  Seen seen;
  int i = static_cast<int>(threadIdx.x);
  if (job.vectors) {
#pragma unroll 8
    for (int j = i; j < count / 4; j += kSampleThreads) {
      const float4 v = reinterpret_cast<const float4*>(from)[j];
      if (job.staged) reinterpret_cast<float4*>(to)[j] = v;
      seen.take(v.x, first_id + 4 * j);
      seen.take(v.y, first_id + 4 * j + 1);
      seen.take(v.z, first_id + 4 * j + 2);
      seen.take(v.w, first_id + 4 * j + 3);
    }
    i += count / 4 * 4;
  }
  for (; i < count; i += kSampleThreads) {
    const float v = from[i];
    if (job.staged) to[i] = v;
    seen.take(v, first_id + i);
  }
  return seen;
}

// Tells all blocks the best of each block and of each group, and whether the row is sound.
__device__ void share_seen(RowShared& s, const Seen& seen) {
  const unsigned rank = cluster_rank(), blocks = cluster_blocks();
  const unsigned t = threadIdx.x, lane = t % kWarpLanes;
  const unsigned groups = kGroups / blocks, lanes = kSampleThreads / groups;
  Word best = ranked(key_of(seen.largest + 0.0f), seen.id);
  for (unsigned step = 1; step < kWarpLanes; step *= 2) {
    if (step == lanes && lane % lanes == 0) {
      for (unsigned r = 0; r < blocks; ++r) {
        *cluster_peer(&s.group_keys[rank * groups + t / lanes], r) =
            static_cast<unsigned>(best >> 32);
      }
    }
    const Word other = __shfl_xor_sync(0xffffffffu, best, step);
    best = other > best ? other : best;
  }
  if (lane == 0) s.warp_best[t / kWarpLanes] = best;
  const int bad = __syncthreads_or(seen.bad);
  if (t < blocks) {
    for (int w = 0; w < kSampleWarps; ++w) best = s.warp_best[w] > best ? s.warp_best[w] : best;
    *cluster_peer(&s.best[rank], t) = best;
    *cluster_peer(&s.bad[rank], t) = bad;
  }
}

__device__ SampleStatus combine_seen(const RowShared& s, Row& row) {
  Word best = 0;
  bool bad = false;
  for (unsigned r = 0; r < cluster_blocks(); ++r) {
    best = s.best[r] > best ? s.best[r] : best;
    bad = bad || s.bad[r] != 0;
  }
  row.largest = logit_of(static_cast<unsigned>(best >> 32));
  row.largest_id = static_cast<int>(~static_cast<unsigned>(best));
  if (bad) return SampleStatus::kNotFinite;
  return row.largest == -CUDART_INF_F ? SampleStatus::kNoToken : SampleStatus::kOk;
}

// At least k logits are as large as the k-th largest of the groups' largest.
__device__ float group_bound(RowShared& s, int k) {
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
__device__ void list_candidate(RowShared& s, float logit, int id) {
  const int at = atomicAdd(&s.listed, 1);
  if (at < kMostListed) s.list[at] = ranked(key_of(logit), id);
}

// Brings the blocks' lists together in the first block, when the cluster has added up how many
// candidates each has: sum `which` of those before the last turn. Returns how many there are; when
// they are too many nothing is moved.
__device__ int join_lists(RowShared& s, int which, int turn) {
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

// Of the whole row; tokens from `bound` on are listed on the way, and counted in sum 1.
__device__ double raw_sum(const Slice& slice, const Row& row, float bound, RowShared& s,
                          int& turn) {
  constexpr int kTogether = 4;  // few enough that their sum may be fp32
  double sums[2] = {0, 0};
  const auto add = [&](int i, float& part) {
    const float logit = slice.at(i);
    part += __expf(logit - row.largest);
    if (logit >= bound) {
      list_candidate(s, logit, slice.first_id + i);
      sums[1] += 1;
    }
  };
  int i = slice.warp_begin + static_cast<int>(threadIdx.x) % kWarpLanes;
  for (; i + (kTogether - 1) * kWarpLanes < slice.warp_end; i += kTogether * kWarpLanes) {
    float part = 0;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) add(i + j * kWarpLanes, part);
    sums[0] += static_cast<double>(part);
  }
  float part = 0;
  for (; i < slice.warp_end; i += kWarpLanes) add(i, part);
  sums[0] += static_cast<double>(part);
  add_over_cluster(s, sums, turn);
  return s.totals[0];
}

// ---- few candidates: sorted in one block ----

// The largest first; `count` is a power of two.
__device__ void sort_list(Word* list, int count) {
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
__device__ double sums_before(RowShared& s, const double (&weights)[N], double (&before)[N]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  double mine = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) mine += weights[i];
  double up_to = mine;
  for (int step = 1; step < kWarpLanes; step *= 2) {
    const double other = __shfl_up_sync(0xffffffffu, up_to, step);
    if (lane >= step) up_to += other;
  }
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
__device__ void filter_list(RowShared& s, const Row& row, int count, int most, double total) {
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
__device__ void choose_from_few(const SampleJob& job, const Row& row, std::int64_t index,
                                RowShared& s, int count, int most, double total, double draw) {
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
__device__ void choose_from_list(const SampleJob& job, const Row& row, std::int64_t index,
                                 RowShared& s, int count, int most, double total, double draw) {
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

// ---- many candidates: nothing is moved ----

// Of the tokens at one key that `among` keeps, this block's share of the first `wanted`.
__device__ Cut cut_among_equals(const Slice& slice, RowShared& s, const Cut& among, unsigned key,
                                double wanted, int& turn) {
  double equals[1] = {0};
  slice.each([&](float logit, int id) {
    equals[0] += key_of(logit) == key && among.keeps(key, id) ? 1.0 : 0.0;
  });
  add_over_cluster(s, equals, turn);
  double before = 0;
  for (unsigned r = 0; r < cluster_rank(); ++r) before += s.sums[turn ^ 1][r][0];
  const double mine = s.sums[turn ^ 1][cluster_rank()][0];
  if (before >= wanted) return {key, -1};
  if (before + mine <= wanted) return {key, key == among.key ? among.last_id : kNoLimit};
  // The last one is in this block: in the warp where the count reaches it.
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  for (int w = 0; w < warp; ++w) before += s.warp_sums[w][0];
  if (before < wanted && before + s.warp_sums[warp][0] >= wanted) {
    int left = static_cast<int>(wanted - before);
    for (int i = slice.warp_begin; i < slice.warp_end; i += kWarpLanes) {
      const bool equal = i + lane < slice.warp_end && key_of(slice.at(i + lane)) == key &&
                         among.keeps(key, slice.first_id + i + lane);
      const unsigned all = __ballot_sync(0xffffffffu, equal);
      const int rank = __popc(all & ((2u << lane) - 1));
      if (equal && rank == left) s.found = slice.first_id + i + lane;
      if (left <= __popc(all)) break;
      left -= __popc(all);
    }
  }
  __syncthreads();
  return {key, s.found};
}

// The fewest first tokens of `among` whose measures add up to `limit`. Keys from `low` on are
// looked at. `measure` of a logit, the same for equal ones.
template <class Measure>
__device__ Cut fewest_that_reach(const Slice& slice, RowShared& s, const Cut& among, unsigned low,
                                 unsigned high, double limit, const Measure& measure, int& turn) {
  double above = 0;  // of all keys over `high`
  while (low < high) {
    const unsigned step = (high - low) / (kPivots + 1) + 1;
    double sums[kPivots] = {};
    slice.each([&](float logit, int id) {
      const unsigned key = key_of(logit);
      if (key < low + step || key > high || !among.keeps(key, id)) return;
      const double value = measure(logit);
#pragma unroll
      for (int j = 0; j < kPivots; ++j) {
        if (key >= low + step * (j + 1)) sums[j] += value;
      }
    });
    add_over_cluster(s, sums, turn);
    int part = 0;  // the highest pivot from which on the limit is reached
    for (int j = 0; j < kPivots; ++j) {
      if (above + s.totals[j] >= limit) part = j + 1;
    }
    if (part < kPivots) {
      above += s.totals[part];
      high = min(high, low + step * (part + 1) - 1);
    }
    low += step * part;
  }
  const double one = measure(logit_of(low));
  const double wanted = one > 0 ? fmax(1.0, ceil((limit - above) / one)) : CUDART_INF;
  return cut_among_equals(slice, s, among, low, wanted, turn);
}

// The total weight of what `cut` keeps and, for tokens from each of a few weights on, their number
// and weight. Returns the key of the highest of these from which on `top_p` is reached by tokens
// that fit into the list; 0: there is none.
__device__ unsigned weigh_row(const Slice& slice, RowShared& s, const Row& row, const Cut& cut,
                              double& total, int& turn) {
  float pivots[kPivots];
#pragma unroll
  for (int j = 0; j < kPivots; ++j) {
    // Weights of 1/4, 1/16, ...
    pivots[j] =
        static_cast<float>(row.largest - 1.3862943611198906 * (j + 1) * row.how.temperature);
  }
  double sums[kSums] = {};
  slice.each([&](float logit, int id) {
    if (!cut.keeps(key_of(logit), id)) return;
    const double weight = row.weight(logit);
    sums[0] += weight;
#pragma unroll
    for (int j = 0; j < kPivots; ++j) {
      if (logit < pivots[j]) continue;
      sums[1 + j] += weight;
      sums[1 + kPivots + j] += 1;
    }
  });
  add_over_cluster(s, sums, turn);
  total = s.totals[0];
  float bound = CUDART_INF_F;
#pragma unroll
  for (int j = kPivots - 1; j >= 0; --j) {
    const bool reached = s.totals[1 + j] >= row.how.top_p * total;
    if (reached && s.totals[1 + kPivots + j] <= kMostListed) bound = pivots[j];
  }
  return bound;
}

// A token of those that `cut` and min-p keep, by the running sum of their weights in the order of
// ids: first the block that it is in, then the warp, then a piece of the warp's elements.
__device__ void walk(const SampleJob& job, const Row& row, std::int64_t index, const Slice& slice,
                     RowShared& s, const Cut& cut, double draw, int& turn) {
  const auto weight_of = [&](int i) {
    const float logit = slice.at(i);
    if (!cut.keeps(key_of(logit), slice.first_id + i)) return 0.0;
    const double weight = row.weight(logit);
    return weight >= row.how.min_p ? weight : 0.0;
  };
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  double sum[1] = {0};
  for (int i = slice.warp_begin + lane; i < slice.warp_end; i += kWarpLanes) {
    sum[0] += weight_of(i);
  }
  add_over_cluster(s, sum, turn);
  double target = draw * s.totals[0], before = 0;
  const int block = crossed_part(static_cast<int>(cluster_blocks()), before, target,
                                 [&](int r) { return s.sums[turn ^ 1][r][0]; });
  if (block != static_cast<int>(cluster_rank())) return;
  const int owner =
      crossed_part(kSampleWarps, before, target, [&](int w) { return s.warp_sums[w][0]; });
  __syncthreads();
  const int share = (slice.count + kSampleWarps - 1) / kSampleWarps;
  const int begin = min(owner * share, slice.count), end = min(begin + share, slice.count);
  const int piece = (share + kSampleWarps - 1) / kSampleWarps;
  const int from = min(begin + warp * piece, end), to = min(from + piece, end);
  double part = 0;
  for (int i = from + lane; i < to; i += kWarpLanes) part += weight_of(i);
  part = warp_sum(part);
  if (lane == 0) s.warp_sums[warp][1] = part;
  __syncthreads();
  const int chosen =
      crossed_part(kSampleWarps, before, target, [&](int w) { return s.warp_sums[w][1]; });
  if (warp != chosen) return;
  int last = -1;
  for (int i = from; i < to; i += kWarpLanes) {
    const double mine = i + lane < to ? weight_of(i + lane) : 0;
    double up_to = mine;
    for (int step = 1; step < kWarpLanes; step *= 2) {
      const double other = __shfl_up_sync(0xffffffffu, up_to, step);
      if (lane >= step) up_to += other;
    }
    const unsigned kept = __ballot_sync(0xffffffffu, mine > 0);
    const unsigned crossed = __ballot_sync(0xffffffffu, mine > 0 && before + up_to > target);
    if (kept != 0) last = i + 31 - __clz(static_cast<int>(kept));
    if (crossed != 0) {
      last = i + __ffs(static_cast<int>(crossed)) - 1;
      break;
    }
    before += __shfl_sync(0xffffffffu, up_to, kWarpLanes - 1);
  }
  if (lane == 0) write_token(job, row, index, slice.first_id + last, slice.at(last));
}

// Returns how many tokens there are from `bound` on: they are in the first block's list.
__device__ int list_from(const Slice& slice, RowShared& s, float bound, int& turn) {
  double count[1] = {0};
  slice.each([&](float logit, int id) {
    if (logit < bound) return;
    list_candidate(s, logit, id);
    count[0] += 1;
  });
  add_over_cluster(s, count, turn);
  return join_lists(s, 0, turn);
}

// A row with a temperature, when its raw sum is known.
__device__ void sample_filtered(const SampleJob& job, const Row& row, std::int64_t index,
                                const Slice& slice, RowShared& s, bool listed, int& turn) {
  const double draw = device_uniform_draw(row.how.seed, row.how.stream, row.how.position);
  const bool has_top_k = row.how.top_k > 0 && row.how.top_k < job.vocab;
  const int most = has_top_k ? row.how.top_k : kNoLimit;
  if (listed) {
    const int count = join_lists(s, 1, turn);
    if (count <= kMostListed) {
      if (cluster_rank() != 0) return;
      return choose_from_list(job, row, index, s, count, most, -1, draw);
    }
  }
  const unsigned high = key_of(row.largest);
  Cut cut;
  if (has_top_k) {
    cut = fewest_that_reach(
        slice, s, cut, key_of(-CUDART_INF_F), high, most, [](float) { return 1.0; }, turn);
  }
  if (row.how.top_p < 1) {
    double total = 0;
    const float bound = weigh_row(slice, s, row, cut, total, turn);
    if (bound < CUDART_INF_F && !has_top_k) {
      const int count = list_from(slice, s, bound, turn);
      if (cluster_rank() != 0) return;
      return choose_from_list(job, row, index, s, count, most, total, draw);
    }
    // All tokens below (1 - p) / v together do not reach 1 - p, so none is in the nucleus.
    const double lowest =
        row.largest + row.how.temperature * log((1 - static_cast<double>(row.how.top_p)) * total /
                                                static_cast<double>(job.vocab));
    const float low = fminf(__double2float_rd(lowest), row.largest) + 0.0f;
    cut = fewest_that_reach(
        slice, s, cut, max(key_of(low), key_of(-CUDART_INF_F)), high,
        static_cast<double>(row.how.top_p) * total, [&](float logit) { return row.weight(logit); },
        turn);
  }
  walk(job, row, index, slice, s, cut, draw, turn);
}

__global__ void __launch_bounds__(kSampleThreads, 3) sample_kernel(const SampleJob job) {
  extern __shared__ float4 memory[];
  RowShared& s = *reinterpret_cast<RowShared*>(memory);
  float* const stage = reinterpret_cast<float*>(&s + 1);
  const unsigned rank = cluster_rank();
  const std::int64_t index = blockIdx.x / cluster_blocks();
  if (threadIdx.x == 0) s.listed = 0;
  cluster_arrive();
  const std::int64_t first = std::int64_t{rank} * job.slice;
  const int begin = static_cast<int>(min(first, std::int64_t{job.vocab}));
  const int count = min(job.slice, job.vocab - begin);
  const float* from = job.logits + index * job.stride + begin;
  Row row;
  row.how = job.rows[index];
  const Seen seen = load_slice(job, from, begin, count, stage);
  cluster_wait();  // from here on all blocks run
  share_seen(s, seen);
  cluster_sync();
  // All blocks have read the row's position by now.
  if (rank == 0 && threadIdx.x == 0) job.rows[index].position = row.how.position + 1;
  const SampleStatus status = combine_seen(s, row);
  if (status != SampleStatus::kOk) {
    if (rank == 0 && threadIdx.x == 0) {
      job.next_ids[index] = 0;
      job.out[index] = {-1, 0, status};
    }
    return;
  }
  const Slice slice(job.staged ? stage : from, begin, count);
  const bool greedy = row.how.temperature == 0;
  const bool few = row.how.top_k > 0 && row.how.top_k <= kMostGroupTopK;
  const bool listed = !greedy && (job.vocab <= kMostListed || few);
  float bound = CUDART_INF_F;  // no list
  if (listed) bound = job.vocab > kMostListed ? group_bound(s, row.how.top_k) : -CUDART_INF_F;
  row.coldness = 1 / static_cast<double>(row.how.temperature);
  int turn = 0;
  row.raw_sum = raw_sum(slice, row, bound, s, turn);
  if (greedy) {
    if (rank == 0 && threadIdx.x == 0) {
      write_token(job, row, index, row.largest_id, row.largest);
    }
    return;
  }
  sample_filtered(job, row, index, slice, s, listed, turn);
}

}  // namespace

void sample_rows_cuda(const SampleRowsArgs& args, Context& ctx) {
  const std::int64_t rows = args.logits.shape[0];
  // Only the code for 9.0 knows clusters.
  const bool clusters =
      ctx.gpu()->info().compute_capability == 90 && !args.alone && args.vocab > kMostListed;
  const unsigned blocks = clusters ? kMostClusterBlocks : 1;
  SampleJob job{};
  job.logits = args.logits.data;
  job.stride = args.logits.stride[0];
  job.vocab = static_cast<int>(args.vocab);
  const std::int64_t share = (args.vocab + blocks - 1) / blocks;
  job.slice = static_cast<int>(std::min<std::int64_t>((share + 3) / 4 * 4, kNoLimit - 3));
  const std::size_t staged_bytes = sizeof(float) * static_cast<std::size_t>(job.slice);
  job.staged =
      sizeof(RowShared) + staged_bytes <= (clusters ? kMostClusterStagedBytes : kMostStagedBytes);
  job.vectors = takes_float4(job.logits, job.stride);
  job.rows = args.rows;
  job.next_ids = args.next_ids;
  job.out = args.out;
  const std::size_t bytes = sizeof(RowShared) + (job.staged ? staged_bytes : 0);
  check_cuda(cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "sampling's shared memory");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid_blocks(rows * blocks);
  config.blockDim = kSampleThreads;
  config.dynamicSmemBytes = bytes;
  config.stream = stream_of(ctx);
  config.attrs = &cluster;
  config.numAttrs = clusters ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, sample_kernel, static_cast<const SampleJob>(job)),
             "sampling");
}

}  // namespace mamba3
