// Long sequences that are too few to fill the card are walked in parts at once. First the parts,
// cut further into sections, are walked for their states alone, each section from zeros. What a
// section does to a state is linear, and turning all its phases by theta turns K, so
//   h' = decay (h + weight K_before x_before^T) + R(theta) h_section,   K = R(theta) K_section
// give the state before every part, with which the parts are walked for their outputs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_memory_cuda.cuh"

namespace mamba3 {
namespace {

// Shorter sequences are walked in one piece and keep their bits.
constexpr std::int64_t kFewestPartedTokens = 2048;
// What one block joins, section by section, shall be little beside the walk.
constexpr std::int64_t kMostParts = 16;
constexpr std::int64_t kMostSections = 4;

// How a sequence is cut that is long enough.
struct PartCounts {
  int parts = 1;
  int sections = 1;  // of every part but the last, behind which nothing is

  PartCounts(const ChunkedScanJob& job, std::int64_t multiprocessors) {
    const std::int64_t blocks = job.sequences * job.sizes.heads;
    if (job.tokens < kFewestPartedTokens || 2 * blocks > multiprocessors) return;
    parts = static_cast<int>(std::min(multiprocessors / blocks, kMostParts));
    const std::int64_t rounds = multiprocessors / (blocks * (parts - 1));
    sections = static_cast<int>(std::min(rounds, kMostSections));
  }
  __host__ __device__ int all_sections() const { return (parts - 1) * sections; }
};

// Slots of the workspace: one of zeros, then the sections' ends, then the parts' starts.
struct ScanParts {
  PartCounts counts;
  ScanPiece* sections;  // [q, all_sections]
  ScanPiece* parts;     // [q, parts]
};

// Where a sequence is cut: on the grid, as evenly as that allows.
struct PartLengths {
  int begin;
  int end;
  int part;     // tokens
  int section;  // tokens

  __device__ PartLengths(const ChunkedScanJob& job, const PartCounts& counts,
                         std::int64_t sequence) {
    begin = static_cast<int>(job.cu_seqlens[sequence]);
    end = static_cast<int>(job.cu_seqlens[sequence + 1]);
    part = section = end - begin;
    if (part < kFewestPartedTokens) return;
    part = share(part, counts.parts);
    section = share(part, counts.sections);
  }

 private:
  static __device__ int share(int tokens, int count) {
    const int steps = (tokens + kGridTokens - 1) / kGridTokens;
    return (steps + count - 1) / count * kGridTokens;
  }
};

__device__ ScanPiece section_piece(const ChunkedScanJob& job, const PartCounts& counts,
                                   std::int64_t sequence, int number) {
  const PartLengths lengths(job, counts, sequence);
  const int part = lengths.begin + number / counts.sections * lengths.part;
  const int begin = part + number % counts.sections * lengths.section;
  const int end = min(begin + lengths.section, part + lengths.part);
  if (begin >= end || part + lengths.part >= lengths.end) return {};  // none, or of the last part
  const auto slot = static_cast<int>(1 + sequence * counts.all_sections()) + number;
  return {begin, end, ~0, ~slot};
}

// A sequence's last part ends in the sequence's slot. One that is a part alone begins there too.
__device__ ScanPiece part_piece(const ChunkedScanJob& job, const PartCounts& counts,
                                std::int64_t sequence, int number) {
  const PartLengths lengths(job, counts, sequence);
  const std::int64_t begin = lengths.begin + std::int64_t{number} * lengths.part;
  if (begin >= lengths.end) return {};
  const bool is_last = begin + lengths.part >= lengths.end;
  const int end = is_last ? lengths.end : static_cast<int>(begin) + lengths.part;
  const auto slot = static_cast<int>(1 + job.sequences * counts.all_sections() +
                                     sequence * counts.parts + number);
  const int own = job.slots[sequence];
  return {static_cast<int>(begin), end, is_last && number == 0 ? own : ~slot,
          is_last ? own : ~slot};
}

__global__ void __launch_bounds__(kPrepareThreads)
    cut_parts_kernel(const ChunkedScanJob job, const ScanParts to) {
  const int of_sequence = to.counts.all_sections() + to.counts.parts;
  const std::int64_t i = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (i >= job.sequences * of_sequence) return;
  const std::int64_t sequence = i / of_sequence;
  const auto number = static_cast<int>(i % of_sequence);
  const int part = number - to.counts.all_sections();
  if (part < 0) {
    to.sections[sequence * to.counts.all_sections() + number] =
        section_piece(job, to.counts, sequence, number);
  } else {
    to.parts[sequence * to.counts.parts + part] = part_piece(job, to.counts, sequence, part);
  }
}

// Takes workspace for the job's parts and cuts them.
ScanParts cut_parts(ChunkedScanJob& job, const PartCounts& counts, ArenaScope& scope,
                    cudaStream_t stream) {
  const std::int64_t sections = job.sequences * counts.all_sections();
  const std::int64_t parts = job.sequences * counts.parts;
  const ScanParts out{counts, scope.allocate<ScanPiece>(sections),
                      scope.allocate<ScanPiece>(parts)};
  const std::int64_t heads = job.sizes.heads, n = job.sizes.state;
  const std::int64_t ssm = heads * n * kChunkHeadDim, k = job.sizes.rank * heads * n;
  const std::int64_t v = heads * kChunkHeadDim, turns = heads * job.sizes.angles;
  const std::int64_t slot = ssm + k + v + turns;
  Mamba3States& states = job.parts;
  states.slots = 1 + sections + parts;
  states.ssm = scope.allocate<float>(states.slots * slot);
  states.k = states.ssm + ssm;
  states.v = states.k + k;
  states.turns = reinterpret_cast<std::uint32_t*>(states.v + v);
  states.ssm_stride = states.k_stride = states.v_stride = states.turns_stride = slot;
  check_cuda(cudaMemsetAsync(states.ssm, 0, static_cast<std::size_t>(slot) * sizeof(float), stream),
             "mamba3_scan's zeros");
  cut_parts_kernel<<<grid_blocks(sections + parts, kPrepareThreads), kPrepareThreads, 0, stream>>>(
      job, out);
  check_launch("mamba3_scan: parts");
  return out;
}

constexpr int kJoinThreads = 256;
constexpr int kJoinWarps = kJoinThreads / kWarpLanes;
constexpr int kJoinSlices = kChunkHeadDim / kWarpLanes;  // blocks side by side along p
constexpr int kMostJoinedRank = 4;

__device__ __forceinline__ float2 rotate_pair(float2 v, float2 cos_sin) {
  return make_float2(fmaf(-v.y, cos_sin.y, v.x * cos_sin.x), fmaf(v.y, cos_sin.x, v.x * cos_sin.y));
}

// What a block knows of the token before the next section.
template <int kState>
struct JoinMemory {
  std::uint32_t turns[kState / 2];
  float2 cos_sin[kState / 2];             // of the turns
  float2 k[kMostJoinedRank][kState / 2];  // rotated pairs
  double decays[kJoinWarps];
};

// One block: 32 columns of a head of a sequence. A lane has a column, a warp every eighth pair of
// rows.
template <int kState>
struct PartJoiner {
  static constexpr int kPairs = kState / 2 / kJoinWarps;
  using Rows = float2[kPairs];
  const ChunkedScanJob& job;
  JoinMemory<kState>& m;
  int head;
  int column;
  bool first_slice;
  int warp;
  Rows h;
  float x;  // of the token before

  __device__ PartJoiner(const ChunkedScanJob& job_in, JoinMemory<kState>& memory, int head_in,
                        int slice, int slot)
      : job(job_in), m(memory), head(head_in), first_slice(slice == 0) {
    column = slice * kWarpLanes + static_cast<int>(threadIdx.x) % kWarpLanes;
    warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    const HeadState from(job, slot, head);
    load(from, h);
    x = from.v[column];
    each_k([&](int r, int pair) { m.k[r][pair] = k_pair(from, r, pair); });
    each_angle(
        [&](int angle) { m.turns[angle] = angle < job.sizes.angles ? from.turns[angle] : 0; });
    __syncthreads();
  }

  // The state before a part.
  __device__ void store(int slot) const {
    const HeadState to(job, slot, head);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      to.ssm[first_row(pair_of(i)) * kChunkHeadDim + column] = h[i].x;
      to.ssm[second_row(pair_of(i)) * kChunkHeadDim + column] = h[i].y;
    }
    if (warp == 0) to.v[column] = x;
    if (!first_slice) return;
    each_k([&](int r, int pair) {
      to.k[r * to.rank_stride + first_row(pair)] = m.k[r][pair].x;
      to.k[r * to.rank_stride + second_row(pair)] = m.k[r][pair].y;
    });
    each_angle([&](int angle) {
      if (angle < job.sizes.angles) to.turns[angle] = m.turns[angle];
    });
  }

  __device__ void add(const ScanPiece& section) {
    const HeadState from(job, section.to, head);
    Rows own;
    load(from, own);
    each_angle([&](int angle) {
      cos_sin_of_turns(m.turns[angle], true, m.cos_sin[angle].x, m.cos_sin[angle].y);
    });
    const float decay = decay_over(section);
    add_before(job.weights[head * job.tokens + section.begin].y);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 rotated = rotate_pair(own[i], m.cos_sin[pair_of(i)]);
      h[i] = make_float2(fmaf(decay, h[i].x, rotated.x), fmaf(decay, h[i].y, rotated.y));
    }
    x = from.v[column];
    __syncthreads();
    each_k([&](int r, int pair) {
      m.k[r][pair] = rotate_pair(k_pair(from, r, pair), m.cos_sin[pair]);
    });
    each_angle([&](int angle) {
      if (angle < job.sizes.angles) m.turns[angle] += from.turns[angle];
    });
    __syncthreads();
  }

 private:
  __device__ int pair_of(int i) const {
    return i * kJoinWarps + warp;
  }
  __device__ int first_row(int pair) const {
    return job.sizes.mimo ? pair : 2 * pair;
  }
  __device__ int second_row(int pair) const {
    return job.sizes.mimo ? pair + kState / 2 : 2 * pair + 1;
  }
  __device__ float2 k_pair(const HeadState& from, int r, int pair) const {
    const float* row = from.k + r * from.rank_stride;
    return make_float2(row[first_row(pair)], row[second_row(pair)]);
  }
  __device__ void load(const HeadState& from, Rows& to) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      to[i] = make_float2(from.ssm[first_row(pair_of(i)) * kChunkHeadDim + column],
                          from.ssm[second_row(pair_of(i)) * kChunkHeadDim + column]);
    }
  }
  template <class F>
  __device__ void each_k(const F& f) const {
    const int count = job.sizes.rank * (kState / 2);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kJoinThreads) {
      f(i / (kState / 2), i % (kState / 2));
    }
  }
  template <class F>
  __device__ void each_angle(const F& f) const {
    if (threadIdx.x < kState / 2) f(static_cast<int>(threadIdx.x));
  }

  // As the walk itself does where it begins.
  __device__ void add_before(float weight) {
    for (int r = 0; r < job.sizes.rank; ++r) {
      const float mimo_x =
          job.sizes.rank == 1
              ? 1.0f
              : job.params.mimo_x[(head * job.sizes.rank + r) * kChunkHeadDim + column];
      const float weighted = weight * (x * mimo_x);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const float2 k = m.k[r][pair_of(i)];
        h[i] = make_float2(fmaf(weighted, k.x, h[i].x), fmaf(weighted, k.y, h[i].y));
      }
    }
  }

  // What is left of a state behind the section. All threads meet here.
  __device__ float decay_over(const ScanPiece& section) {
    const std::int64_t* from = job.decays + head * job.tokens;
    double sum = 0;  // of many tokens, too much for an integer
    for (int t = section.begin + static_cast<int>(threadIdx.x); t < section.end;
         t += kJoinThreads) {
      sum += static_cast<double>(from[t] - (t % kDecayTokens == 0 ? 0 : from[t - 1]));
    }
    for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    }
    if (threadIdx.x % kWarpLanes == 0) m.decays[warp] = sum;
    __syncthreads();
    double all = 0;
    for (const double part : m.decays) all += part;
    return static_cast<float>(exp2(all * kDecayUnit));
  }
};

template <int kState>
__global__ void __launch_bounds__(kJoinThreads)
    join_parts_kernel(const ChunkedScanJob job, const ScanParts parts) {
  __shared__ JoinMemory<kState> memory;
  const PartCounts& counts = parts.counts;
  const int slice = static_cast<int>(blockIdx.x) % kJoinSlices;
  const int head = static_cast<int>(blockIdx.x) / kJoinSlices % job.sizes.heads;
  const std::int64_t sequence = blockIdx.x / kJoinSlices / job.sizes.heads;
  const ScanPiece* part = parts.parts + sequence * counts.parts;
  if (part->to >= 0 || part->begin >= part->end) return;  // walked from its own slot
  const ScanPiece* section = parts.sections + sequence * counts.all_sections();
  PartJoiner<kState> joiner(job, memory, head, slice, job.slots[sequence]);
  for (;; ++part) {
    joiner.store(part->from);
    if (part->to >= 0) return;
    for (int i = 0; i < counts.sections; ++i, ++section) {
      if (section->begin < section->end) joiner.add(*section);
    }
  }
}

// Finds the state before every part from what its sections' walks have left.
void join_parts(const ChunkedScanJob& job, const ScanParts& parts, cudaStream_t stream) {
  const unsigned blocks = grid_blocks(job.sequences * job.sizes.heads * kJoinSlices);
  if (job.sizes.state == 64) {
    join_parts_kernel<64><<<blocks, kJoinThreads, 0, stream>>>(job, parts);
  } else {
    join_parts_kernel<128><<<blocks, kJoinThreads, 0, stream>>>(job, parts);
  }
  check_launch("mamba3_scan: joining parts");
}

}  // namespace
}  // namespace mamba3
