// Many candidates: nothing is moved. The last token that a filter keeps is found by narrowing an
// interval of logits, the choice by walking over the row.
#pragma once

#include "ops/sampling/sample_row_cuda.cuh"

namespace mamba3 {

// Of the tokens at one key that `among` keeps, this block's share of the first `wanted`.
__device__ inline Cut cut_among_equals(const Slice& slice, RowShared& s, const Cut& among,
                                       unsigned key, double wanted, int& turn) {
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
__device__ inline Cut fewest_that_reach(const Slice& slice, RowShared& s, const Cut& among,
                                        unsigned low, unsigned high, double limit,
                                        const Measure& measure, int& turn) {
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
// and weight. Returns the highest of these logits from which on `top_p` is reached by tokens that
// fit into the list; +infinity: there is none.
__device__ inline float weigh_row(const Slice& slice, RowShared& s, const Row& row, const Cut& cut,
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
__device__ inline void walk(const SampleJob& job, const Row& row, std::int64_t index,
                            const Slice& slice, RowShared& s, const Cut& cut, double draw,
                            int& turn) {
  const auto weight_of = [&](int i) {
    const float logit = slice.at(i);
    if (!cut.keeps(key_of(logit), slice.first_id + i)) return 0.0;
    const double weight = row.weight(logit);
    return weight >= row.how.min_p ? weight : 0.0;
  };
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  double sum[1] = {0};
#pragma unroll 4
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
    const double up_to = warp_inclusive_sum(mine, lane);
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

}  // namespace mamba3
