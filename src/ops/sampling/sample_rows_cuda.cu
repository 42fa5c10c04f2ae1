// One cluster of blocks samples one row. Its logits are read from memory once, into the blocks'
// shared memory, where they fit. Most rows need few tokens: those are collected in one block, which
// sorts them. Where they may be many, the last token that a filter keeps is found by narrowing an
// interval of logits, and the choice is made by walking over the row.
#include <algorithm>
#include <cmath>

#include "device/dependent_launch.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"
#include "ops/sampling/sample_list_cuda.cuh"
#include "ops/sampling/sample_walk_cuda.cuh"

namespace mamba3 {
namespace {

// Filters that keep so few are bounded from below by the largest logits of the groups.
constexpr int kMostGroupTopK = 112;
constexpr std::size_t kMostStagedBytes = 96 << 10;          // what every card has
constexpr std::size_t kMostClusterStagedBytes = 200 << 10;  // what those with clusters have

// What a thread finds while the row comes in, id after id.
struct Seen {
  float largest;
  int at = -1;       // where it was found first
  bool bad = false;  // NaN or +infinity
  __device__ Seen() : largest(-INFINITY) {}
  __device__ void check(float logit) { bad = bad || !(logit < CUDART_INF_F); }
  __device__ void take(float logit, int next) {
    if (logit > largest) {
      largest = logit;
      at = next;
    }
  }
};

template <bool kStaged>
__device__ Seen load_slice(const SampleJob& job, const float* from, int count, float* stage) {
  Seen seen;
  int i = static_cast<int>(threadIdx.x);
  if (job.vectors) {
#pragma unroll 8
    for (int j = i; j < count / 4; j += kSampleThreads) {
      const float4 v = reinterpret_cast<const float4*>(from)[j];
      if (kStaged) reinterpret_cast<float4*>(stage)[j] = v;
      seen.check(v.x);
      seen.check(v.y);
      seen.check(v.z);
      seen.check(v.w);
      seen.take(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)), 4 * j);
    }
    // Which of the four it was.
    while (seen.at >= 0 && from[seen.at] != seen.largest && !seen.bad) ++seen.at;
    i += count / 4 * 4;
  }
  for (; i < count; i += kSampleThreads) {
    const float v = from[i];
    if (kStaged) stage[i] = v;
    seen.check(v);
    seen.take(v, i);
  }
  return seen;
}

// Tells all blocks the best of each block and of each group, and whether the row is sound.
__device__ void share_seen(RowShared& s, const Seen& seen, int first_id) {
  const unsigned rank = cluster_rank(), blocks = cluster_blocks();
  const unsigned t = threadIdx.x, lane = t % kWarpLanes;
  const unsigned groups = kGroups / blocks, lanes = kSampleThreads / groups;
  const int id = seen.at < 0 ? kNoLimit : first_id + seen.at;
  Word best = ranked(key_of(seen.largest + 0.0f), id);
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

// Of the whole row; tokens from `bound` on are listed on the way, and counted in sum 1.
__device__ double raw_sum(const Slice& slice, const Row& row, float bound, RowShared& s,
                          int& turn) {
  constexpr int kTogether = 8;  // few enough that their sum may be fp32
  double sums[2] = {0, 0};
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  for (int i = slice.warp_begin + lane; i < slice.warp_end; i += kTogether * kWarpLanes) {
    float logits[kTogether];
    float part = 0, top = -CUDART_INF_F;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int at = i + j * kWarpLanes;
      logits[j] = at < slice.warp_end ? slice.at(at) : -CUDART_INF_F;
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      part += __expf(logits[j] - row.largest);
      top = fmaxf(top, logits[j]);
    }
    sums[0] += static_cast<double>(part);
    if (top < bound) continue;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int at = i + j * kWarpLanes;
      if (at >= slice.warp_end || logits[j] < bound) continue;
      list_candidate(s, logits[j], slice.first_id + at);
      sums[1] += 1;
    }
  }
  add_over_cluster(s, sums, turn);
  return s.totals[0];
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

// kStaged: the slice fits into shared memory.
template <bool kStaged>
__global__ void __launch_bounds__(kSampleThreads, 3) sample_kernel(const SampleJob job) {
  extern __shared__ float4 memory[];
  RowShared& s = *reinterpret_cast<RowShared*>(memory);
  float* const stage = reinterpret_cast<float*>(&s + 1);
  const unsigned rank = cluster_rank();
  const std::int64_t index = blockIdx.x / cluster_blocks();
  if (threadIdx.x == 0) s.listed = 0;
  cluster_arrive();
  start_successor();
  wait_for_predecessor();
  const std::int64_t first = std::int64_t{rank} * job.slice;
  const int begin = static_cast<int>(min(first, std::int64_t{job.vocab}));
  const int count = min(job.slice, job.vocab - begin);
  const float* from = job.logits + index * job.stride + begin;
  Row row;
  row.how = job.rows[index];
  const Seen seen = load_slice<kStaged>(job, from, count, stage);
  cluster_wait();  // from here on all blocks run
  share_seen(s, seen, begin);
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
  const Slice slice(kStaged ? stage : from, begin, count);
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
  const bool staged =
      sizeof(RowShared) + staged_bytes <= (clusters ? kMostClusterStagedBytes : kMostStagedBytes);
  job.vectors = takes_vectors(job.logits, job.stride);
  job.rows = args.rows;
  job.next_ids = args.next_ids;
  job.out = args.out;
  const std::size_t bytes = sizeof(RowShared) + (staged ? staged_bytes : 0);
  const auto kernel = staged ? sample_kernel<true> : sample_kernel<false>;
  allow_shared(reinterpret_cast<const void*>(kernel), bytes, "sampling's shared memory");
  launch_dependent("sampling", kernel,
                   {.grid = grid_blocks(rows * blocks),
                    .threads = kSampleThreads,
                    .shared_bytes = bytes,
                    .cluster = blocks},
                   ctx, job);
}

}  // namespace mamba3
