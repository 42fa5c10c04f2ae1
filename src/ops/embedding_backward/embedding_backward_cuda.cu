// Rows are sorted by their id and, among equals, by their place, and the sorted rows cut into
// segments of kSegment. A block adds up the runs of equal ids in its segment: a run that lies in it
// goes to the table; of a run that crosses an edge, which frequent ids have, a partial sum is left,
// and a second kernel adds the partial sums of each such run in order.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cub/device/device_radix_sort.cuh>

#include "core/arena.h"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kMostThreads = 256;
constexpr int kSegment = 32;
constexpr int kBatch = 4;  // rows that a thread fetches at once

struct SortedRows {
  const std::uint32_t* ids;   // ascending; those outside the table are `unknown`, the last
  const std::uint32_t* rows;  // where each comes from
  std::int64_t count;
  std::uint32_t unknown;
};

struct EmbeddingBackwardJob {
  SortedRows sorted;
  const float* grad_y;
  std::int64_t grad_y_stride;
  float* grad_table;
  std::int64_t grad_table_stride;
  // [segments, 2, d]: of the run that came in over a segment's first edge, and of the one that
  // begins in the segment and goes out over its last.
  float* partial;
  int d;
};

__global__ void make_keys(const std::int32_t* ids, std::int64_t count, std::uint32_t table_rows,
                          std::uint32_t* keys, std::uint32_t* rows) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  keys[i] = min(static_cast<std::uint32_t>(ids[i]), table_rows);  // a negative one is large
  rows[i] = static_cast<std::uint32_t>(i);
}

// One segment's ids and rows, and whether a run begins at each; the place behind the last one tells
// where the last run ends.
struct Segment {
  std::uint32_t ids[kSegment];
  std::uint32_t rows[kSegment];
  bool begins[kSegment + 1];
};

__device__ __forceinline__ void fetch(const SortedRows& sorted, Segment& segment) {
  const std::int64_t begin = std::int64_t{blockIdx.x} * kSegment;
  const int lane = static_cast<int>(threadIdx.x);
  if (lane <= kSegment) {
    const std::int64_t at = begin + lane;
    const std::uint32_t id = at < sorted.count ? sorted.ids[at] : sorted.unknown;
    segment.begins[lane] = at == 0 || at >= sorted.count || sorted.ids[at - 1] != id;
    if (lane < kSegment) {
      segment.ids[lane] = id;
      segment.rows[lane] = at < sorted.count ? sorted.rows[at] : 0;
    }
  }
  __syncthreads();
}

// A thread takes V columns of a segment's rows.
template <int V>
__global__ void __launch_bounds__(kMostThreads) add_segments(const EmbeddingBackwardJob job) {
  __shared__ Segment segment;
  start_successor();
  wait_for_predecessor();
  fetch(job.sorted, segment);
  const int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * V;
  if (i >= job.d) return;
  float* partial = job.partial + std::int64_t{blockIdx.x} * 2 * job.d + i;
  bool whole = false;  // the run began in this segment
  float sum[V] = {};
  for (int first = 0; first < kSegment; first += kBatch) {
    float rows[kBatch][V] = {};
    float before[kBatch][V] = {};
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const std::uint32_t id = segment.ids[first + j];
      if (id == job.sorted.unknown) continue;
      load_vector<V>(job.grad_y + segment.rows[first + j] * job.grad_y_stride + i, rows[j]);
      if (!segment.begins[first + j + 1]) continue;
      load_vector<V>(job.grad_table + id * job.grad_table_stride + i, before[j]);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int at = first + j;
      if (segment.ids[at] == job.sorted.unknown) return;  // and so are all that follow
      const bool begins = segment.begins[at];
      const bool ends = segment.begins[at + 1];
      whole |= begins;
      for (int v = 0; v < V; ++v) sum[v] = begins ? rows[j][v] : sum[v] + rows[j][v];
      if (ends && whole) {
        for (int v = 0; v < V; ++v) before[j][v] += sum[v];
        store_vector<V>(before[j], job.grad_table + segment.ids[at] * job.grad_table_stride + i);
      } else if (ends || at == kSegment - 1) {
        store_vector<V>(sum, partial + (whole ? job.d : 0));
      }
    }
  }
}

// How many segments behind `segment` begin with a row of `id`: in sorted order they follow each
// other.
__device__ __forceinline__ std::int64_t segments_behind(const SortedRows& sorted,
                                                        std::int64_t segment, std::uint32_t id) {
  std::int64_t count = 0;
  while (true) {
    const std::int64_t at = (segment + 1 + count + threadIdx.x) * kSegment;
    const int more = __syncthreads_count(at < sorted.count && sorted.ids[at] == id);
    count += more;
    if (more < static_cast<int>(blockDim.x)) return count;
  }
}

// A block for each segment and kWarpLanes vectors of columns; it has work if a run begins in the
// segment that goes on behind it. Each warp adds up a share of the run's partial sums.
template <int V>
__global__ void __launch_bounds__(kMostThreads) add_partial_sums(const EmbeddingBackwardJob job) {
  constexpr int kWarps = kMostThreads / kWarpLanes;
  __shared__ float shares[kWarps][kWarpLanes][V];
  start_successor();
  wait_for_predecessor();
  const std::int64_t segment = blockIdx.x;
  const std::int64_t begin = segment * kSegment;
  const std::int64_t next = begin + kSegment;
  const std::uint32_t id = job.sorted.ids[next - 1];
  const bool goes_on = job.sorted.ids[next] == id;
  const bool came_in = begin > 0 && job.sorted.ids[begin - 1] == id;
  if (!goes_on || came_in || id == job.sorted.unknown) return;
  const std::int64_t parts = 1 + segments_behind(job.sorted, segment, id);
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int i = (static_cast<int>(blockIdx.y) * kWarpLanes + lane) * V;
  const float* partial = job.partial + segment * 2 * job.d + i;
  float sum[V] = {};
#pragma unroll 4
  for (std::int64_t j = parts * warp / kWarps; j < parts * (warp + 1) / kWarps; ++j) {
    float part[V] = {};
    if (i < job.d) load_vector<V>(partial + j * 2 * job.d + (j == 0 ? job.d : 0), part);
    for (int v = 0; v < V; ++v) sum[v] += part[v];
  }
  for (int v = 0; v < V; ++v) shares[warp][lane][v] = sum[v];
  __syncthreads();
  if (warp > 0 || i >= job.d) return;
  for (int other = 1; other < kWarps; ++other) {
    for (int v = 0; v < V; ++v) sum[v] += shares[other][lane][v];
  }
  float* to = job.grad_table + id * job.grad_table_stride + i;
  float total[V];
  load_vector<V>(to, total);
  for (int v = 0; v < V; ++v) total[v] += sum[v];
  store_vector<V>(total, to);
}

std::int64_t segments_of(const EmbeddingBackwardArgs& args) {
  return (std::ssize(args.ids) + kSegment - 1) / kSegment;
}

using Buffer = cub::DoubleBuffer<std::uint32_t>;

cudaError_t sort(void* memory, std::size_t& bytes, Buffer& keys, Buffer& rows,
                 const EmbeddingBackwardArgs& args, cudaStream_t stream) {
  const int bits = std::bit_width(static_cast<std::uint64_t>(args.grad_table.shape[0]));
  return cub::DeviceRadixSort::SortPairs(
      memory, bytes, keys, rows, static_cast<std::uint32_t>(args.ids.size()), 0, bits, stream);
}

// With no memory given, CUB says how much it wants.
std::size_t sort_bytes(const EmbeddingBackwardArgs& args) {
  std::size_t bytes = 0;
  Buffer keys, rows;
  check_cuda(sort(nullptr, bytes, keys, rows, args, nullptr), "embedding_backward: sort");
  return bytes;
}

SortedRows sort_rows(const EmbeddingBackwardArgs& args, ArenaScope& scope, Context& ctx) {
  constexpr int kThreads = 256;
  const std::int64_t count = std::ssize(args.ids);
  const auto table_rows = static_cast<std::uint32_t>(args.grad_table.shape[0]);
  Buffer keys(scope.allocate<std::uint32_t>(count), scope.allocate<std::uint32_t>(count));
  Buffer rows(scope.allocate<std::uint32_t>(count), scope.allocate<std::uint32_t>(count));
  launch_dependent("embedding_backward: keys", make_keys, {grid_blocks(count, kThreads), kThreads},
                   ctx, args.ids.data(), count, table_rows, keys.Current(), rows.Current());
  std::size_t bytes = sort_bytes(args);
  auto* memory = scope.allocate<std::byte>(static_cast<std::int64_t>(bytes));
  check_cuda(sort(memory, bytes, keys, rows, args, stream_of(ctx)), "embedding_backward: sort");
  return {keys.Current(), rows.Current(), count, table_rows};
}

template <int V>
void launch(const EmbeddingBackwardJob& job, Context& ctx) {
  const unsigned segments = grid_blocks(job.sorted.count, kSegment);
  const std::int64_t vectors = (job.d + V - 1) / V;
  const std::int64_t warps = (vectors + kWarpLanes - 1) / kWarpLanes;
  // fetch() takes more threads than a segment has rows.
  const auto threads = static_cast<unsigned>(
      std::clamp<std::int64_t>(warps * kWarpLanes, 2 * kWarpLanes, kMostThreads));
  launch_dependent("embedding_backward", add_segments<V>,
                   {dim3(segments, grid_blocks(vectors, threads)), threads}, ctx, job);
  if (segments == 1) return;
  launch_dependent("embedding_backward: partial sums", add_partial_sums<V>,
                   {dim3(segments - 1, grid_blocks(vectors, kWarpLanes)), kMostThreads}, ctx, job);
}

}  // namespace

std::size_t embedding_backward_workspace_bytes_cuda(const EmbeddingBackwardArgs& args) {
  const std::size_t partial = segments_of(args) * 2 * args.grad_y.shape[1] * sizeof(float);
  return 4 * args.ids.size() * sizeof(std::uint32_t) + sort_bytes(args) + partial +
         6 * Arena::kAlignBytes;
}

void embedding_backward_cuda(const EmbeddingBackwardArgs& args, Context& ctx) {
  ArenaScope scope(ctx.workspace());
  EmbeddingBackwardJob job{};
  job.sorted = sort_rows(args, scope, ctx);
  job.grad_y = args.grad_y.data;
  job.grad_y_stride = args.grad_y.stride[0];
  job.grad_table = args.grad_table.data;
  job.grad_table_stride = args.grad_table.stride[0];
  job.d = static_cast<int>(args.grad_y.shape[1]);
  job.partial = scope.allocate<float>(segments_of(args) * 2 * job.d);
  const bool vectors = job.d % 4 == 0 && takes_vectors(job.grad_y, job.grad_y_stride) &&
                       takes_vectors(job.grad_table, job.grad_table_stride);
  vectors ? launch<4>(job, ctx) : launch<1>(job, ctx);
}

}  // namespace mamba3
