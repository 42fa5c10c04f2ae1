#include "ops/mamba3_scan_backward/scan_backward_sums_cuda.h"

#include <algorithm>
#include <numbers>

#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan_backward/scan_backward_norms_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kSumThreads = 256;
constexpr int kSumWarps = kSumThreads / kWarpLanes;
constexpr int kCountThreads = 1024;

// One block: the sequences' first pieces, a sequence a thread and then the next ones.
__global__ void __launch_bounds__(kCountThreads)
    count_pieces_kernel(const std::int64_t* cu_seqlens, int sequences, int tokens, int* first) {
  __shared__ int warps[kCountThreads / kWarpLanes];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpLanes;
  int before = 0;  // pieces of the sequences of earlier rounds
  for (int begin = 0; begin < sequences; begin += kCountThreads) {
    const int i = begin + thread;
    const auto length = i < sequences ? static_cast<int>(cu_seqlens[i + 1] - cu_seqlens[i]) : 0;
    const int pieces = length / tokens + (length % tokens != 0 ? 1 : 0);
    const int in_warp = warp_inclusive_sum(pieces, lane);
    if (lane == kWarpLanes - 1) warps[thread / kWarpLanes] = in_warp;
    __syncthreads();
    const int of_warps = warp_inclusive_sum(warps[lane], lane);
    const int of_warps_before = __shfl_sync(0xffffffffu, of_warps, (thread / kWarpLanes + 31) % 32);
    const int inclusive = before + in_warp + (thread < kWarpLanes ? 0 : of_warps_before);
    if (i < sequences) first[i + 1] = inclusive;
    before += __shfl_sync(0xffffffffu, of_warps, kWarpLanes - 1);
    __syncthreads();
  }
  if (thread == 0) first[0] = 0;
}

__global__ void __launch_bounds__(kSumThreads)
    cut_pieces_kernel(const std::int64_t* cu_seqlens, int sequences, const BackwardPieces out) {
  const int at = static_cast<int>(blockIdx.x) * kSumThreads + static_cast<int>(threadIdx.x);
  if (at >= out.count) return;
  if (at >= out.first[sequences]) {
    out.pieces[at] = {0, 0, 0};
    return;
  }
  int low = 0;  // first[low] <= at < first[high]
  for (int high = sequences; high - low > 1;) {
    const int middle = (low + high) / 2;
    (out.first[middle] <= at ? low : high) = middle;
  }
  const auto end = static_cast<int>(cu_seqlens[low + 1]);
  const int begin = static_cast<int>(cu_seqlens[low]) + (at - out.first[low]) * out.tokens;
  out.pieces[at] = {begin, end - begin < out.tokens ? end : begin + out.tokens, low};
}

// Rows [rows, width] of blocks of heads, summed over those of each group.
struct PartialRows {
  const float* from;  // [blocks, rows, width]
  float* to;          // [rows, groups, width]
  std::int64_t rows;
  int width;
  int groups;
  int heads_per_group;
  int first_head;
  int heads;
  int heads_per_block;
};

__global__ void __launch_bounds__(kSumThreads) add_rows_kernel(const PartialRows job) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  const std::int64_t elements = job.rows * job.width;
  if (i >= elements) return;
  const int group = job.first_head / job.heads_per_group + static_cast<int>(blockIdx.y);
  const int first_of_group = group * job.heads_per_group;
  const int first = max(first_of_group, job.first_head);
  const int end = min(first_of_group + job.heads_per_group, job.first_head + job.heads);
  const int blocks = (end - first) / job.heads_per_block;
  const float* from = job.from + (first - job.first_head) / job.heads_per_block * elements + i;
  const std::int64_t row = i / job.width;
  float* to = job.to + (row * job.groups + group) * job.width + (i - row * job.width);
  float sum = first == first_of_group ? from[0] : *to + from[0];
#pragma unroll 8
  for (int block = 1; block < blocks; ++block) sum += from[block * elements];
  *to = sum;
}

void add_rows(const PartialRows& job, cudaStream_t stream) {
  if (job.width == 0) return;
  const int last = (job.first_head + job.heads - 1) / job.heads_per_group;
  const dim3 grid(grid_blocks(job.rows * job.width, kSumThreads),
                  static_cast<unsigned>(last - job.first_head / job.heads_per_group + 1));
  add_rows_kernel<<<grid, kSumThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: sums over heads");
}

struct FinishJob {
  NormedRows rows[2];
  const float* totals[2];  // [t, r, g, n]
  BackwardPieces pieces;
  int rows_per_token;
  int state;
  float* norm_sums;  // [pieces, 2, n]
};

// A block takes a piece's rows of B or of C.
__global__ void __launch_bounds__(kSumThreads) finish_rows_kernel(const FinishJob job) {
  __shared__ float shared[kSumWarps][kMostState];
  const NormedRows rows = job.rows[blockIdx.y];
  const float* totals = job.totals[blockIdx.y];
  const BackwardPiece piece = job.pieces.pieces[blockIdx.x];
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  NormSums<kMostState> sums{};
  const int count = (piece.end - piece.begin) * job.rows_per_token;
  for (int row = warp; row < count; row += kSumWarps) {
    const std::int64_t token = piece.begin + row / job.rows_per_token;
    const std::int64_t column = std::int64_t{row % job.rows_per_token} * job.state;
    norm_row_backward(rows, totals + token * job.rows_per_token * job.state + column, job.state,
                      lane, token, column, sums);
  }
  tell_norm_sums(sums, job.state, shared,
                 job.norm_sums + (std::int64_t{blockIdx.x} * 2 + blockIdx.y) * job.state);
}

struct AnglesJob {
  const float* totals;  // [t, s]
  const float* raw;     // [t, s] rows raw_stride apart
  std::int64_t raw_stride;
  std::int64_t tokens;
  int angles;
  int columns;  // with those of zeros behind
  GradientColumn out;
};

// A step of a phase is pi tanh(angle) dt; totals have its dt.
__global__ void __launch_bounds__(kSumThreads) finish_angles_kernel(const AnglesJob job) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (i >= job.tokens * job.columns) return;
  const std::int64_t token = i / job.columns;
  const auto angle = static_cast<int>(i - token * job.columns);
  if (angle >= job.angles) return job.out.put(token, angle, 0.0f);
  const double at = tanh(static_cast<double>(job.raw[token * job.raw_stride + angle]));
  const double slope = std::numbers::pi * ((1 - at) * (1 + at));
  job.out.put(token, angle, static_cast<float>(job.totals[token * job.angles + angle] * slope));
}

// Sums of a sequence's pieces, left in the place of its first one.
__global__ void __launch_bounds__(kSumThreads)
    sum_pieces_kernel(const BackwardPieces pieces, float* sums, int elements) {
  const int i = static_cast<int>(blockIdx.x) * kSumThreads + static_cast<int>(threadIdx.x);
  const int first = pieces.first[blockIdx.y];
  const int count = pieces.first[blockIdx.y + 1] - first;
  if (i >= elements || count < 2) return;
  float* at = sums + std::int64_t{first} * elements + i;
  double sum = *at;
#pragma unroll 8
  for (int piece = 1; piece < count; ++piece) sum += at[std::int64_t{piece} * elements];
  *at = static_cast<float>(sum);
}

// Where an element of a piece's sums goes.
struct NormPlaces {
  float* in_b;
  float* out_c;
  int state;
  int elements;  // of a head; here of all

  __device__ float* to(int, int i) const { return i < state ? in_b + i : out_c + (i - state); }
};

struct HeadPlaces {
  Mamba3ParamGradients grads;
  HeadSumPlaces places;
  int first_head;
  int elements;

  __device__ float* to(int head, int i) const {
    const std::int64_t h = first_head + head;
    const auto in = [&](float* grad, int begin, int end) {
      return grad + h * (end - begin) + (i - begin);
    };
    if (i == places.dt_bias) return grads.dt_bias + h;
    if (i == places.skip) return grads.skip + h;
    if (i < places.out_c_bias) return in(grads.in_b_bias, places.in_b_bias, places.out_c_bias);
    if (i < places.mimo_x) return in(grads.out_c_bias, places.out_c_bias, places.mimo_x);
    if (i < places.mimo_z) return in(grads.mimo_x, places.mimo_x, places.mimo_z);
    if (i < places.mimo_o) return in(grads.mimo_z, places.mimo_z, places.mimo_o);
    if (i < places.out_norm) return in(grads.mimo_o, places.mimo_o, places.out_norm);
    return in(grads.out_norm, places.out_norm, places.elements);
  }
};

// The sequences' sums, one after the other.
template <class Places>
__global__ void __launch_bounds__(kSumThreads)
    add_sequences_kernel(const BackwardPieces pieces, int sequences, const float* sums, int heads,
                         const Places places) {
  const int i = static_cast<int>(blockIdx.x) * kSumThreads + static_cast<int>(threadIdx.x);
  const int elements = heads * places.elements;
  if (i >= elements) return;
  float* to = places.to(i / places.elements, i % places.elements);
  float sum = *to;
#pragma unroll 16  // memory answers late
  for (int sequence = 0; sequence < sequences; ++sequence) {
    const int first = pieces.first[sequence];
    const bool is = pieces.first[sequence + 1] > first;
    sum += is ? sums[std::int64_t{first} * elements + i] : 0.0f;
  }
  *to = sum;
}

template <class Places>
void add_sums(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces, float* sums,
              int heads, const Places& places, cudaStream_t stream) {
  const auto sequences = static_cast<int>(args.slots.size());
  const int elements = heads * places.elements;
  const unsigned blocks = grid_blocks(elements, kSumThreads);
  constexpr int kMostGridY = 65535;
  for (int begin = 0; begin < sequences; begin += kMostGridY) {
    BackwardPieces some = pieces;
    some.first += begin;
    const dim3 grid(blocks, static_cast<unsigned>(std::min(sequences - begin, kMostGridY)));
    sum_pieces_kernel<<<grid, kSumThreads, 0, stream>>>(some, sums, elements);
    check_launch("mamba3_scan_backward: sums over pieces");
  }
  add_sequences_kernel<<<blocks, kSumThreads, 0, stream>>>(pieces, sequences, sums, heads, places);
  check_launch("mamba3_scan_backward: sums over sequences");
}

std::int64_t shared_columns(const Mamba3Dims& dims) {
  return dims.rank * dims.groups * dims.state;
}

}  // namespace

BackwardPieces take_pieces(const Mamba3ScanBackwardArgs& args, std::int64_t tokens,
                           Carver& carver) {
  const auto sequences = static_cast<std::int64_t>(args.slots.size());
  BackwardPieces out{};
  out.tokens = static_cast<int>(tokens);
  out.count = static_cast<int>(args.grad_y.shape[0] / tokens + sequences);
  out.pieces = carver.take<BackwardPiece>(out.count);
  out.first = carver.take<int>(sequences + 1);
  return out;
}

void cut_pieces(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces,
                cudaStream_t stream) {
  const auto sequences = static_cast<int>(args.slots.size());
  count_pieces_kernel<<<1, kCountThreads, 0, stream>>>(args.cu_seqlens.data(), sequences,
                                                       pieces.tokens, pieces.first);
  check_launch("mamba3_scan_backward: counting pieces");
  cut_pieces_kernel<<<grid_blocks(pieces.count, kSumThreads), kSumThreads, 0, stream>>>(
      args.cu_seqlens.data(), sequences, pieces);
  check_launch("mamba3_scan_backward: cutting pieces");
}

HeadTotals take_head_totals(const Mamba3ScanBackwardArgs& args, Carver& carver) {
  const std::int64_t tokens = args.grad_y.shape[0];
  const std::int64_t shared = shared_columns(args.dims);
  HeadTotals out{};
  out.grad_b = carver.take<float>(tokens * shared);
  out.grad_c = carver.take<float>(tokens * shared);
  out.grad_phase = carver.take<float>(tokens * args.dims.angle_columns());
  return out;
}

void add_head_partials(const Mamba3ScanBackwardArgs& args, const HeadPartials& partials,
                       const HeadTotals& totals, cudaStream_t stream) {
  const Mamba3Dims& dims = args.dims;
  PartialRows job{};
  job.first_head = partials.first_head;
  job.heads = partials.heads;
  job.heads_per_block = partials.heads_per_block;
  job.rows = args.grad_y.shape[0] * dims.rank;
  job.width = static_cast<int>(dims.state);
  job.groups = static_cast<int>(dims.groups);
  job.heads_per_group = static_cast<int>(dims.heads / dims.groups);
  job.from = partials.grad_b;
  job.to = totals.grad_b;
  add_rows(job, stream);
  job.from = partials.grad_c;
  job.to = totals.grad_c;
  add_rows(job, stream);
  job.rows = args.grad_y.shape[0];
  job.width = static_cast<int>(dims.angle_columns());
  job.groups = 1;
  job.heads_per_group = static_cast<int>(dims.heads);
  job.from = partials.grad_phase;
  job.to = totals.grad_phase;
  add_rows(job, stream);
}

void finish_shared_columns(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces,
                           const HeadTotals& totals, float* norm_sums, cudaStream_t stream) {
  const Mamba3Columns& in = args.columns;
  const GradientColumns out = gradient_columns(args.dims, args.grad_columns);
  FinishJob job{};
  job.rows[0] = {in.in_b, in.row_stride, args.params.in_b_norm, out.in_b};
  job.rows[1] = {in.out_c, in.row_stride, args.params.out_c_norm, out.out_c};
  job.totals[0] = totals.grad_b;
  job.totals[1] = totals.grad_c;
  job.pieces = pieces;
  job.rows_per_token = static_cast<int>(args.dims.rank * args.dims.groups);
  job.state = static_cast<int>(args.dims.state);
  job.norm_sums = norm_sums;
  const dim3 grid(grid_blocks(pieces.count), 2);
  finish_rows_kernel<<<grid, kSumThreads, 0, stream>>>(job);
  check_launch("mamba3_scan_backward: norms");
  const std::int64_t tokens = args.grad_y.shape[0], angles = args.dims.angle_columns();
  const std::int64_t columns = angles + args.grad_columns.zero_columns;
  if (columns == 0) return;
  finish_angles_kernel<<<grid_blocks(tokens * columns, kSumThreads), kSumThreads, 0, stream>>>(
      {totals.grad_phase, in.angle_raw, in.row_stride, tokens, static_cast<int>(angles),
       static_cast<int>(columns), out.angle_raw});
  check_launch("mamba3_scan_backward: angles");
}

void add_norm_sums(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces,
                   float* norm_sums, cudaStream_t stream) {
  const auto state = static_cast<int>(args.dims.state);
  const NormPlaces places{args.grad_params.in_b_norm, args.grad_params.out_c_norm, state,
                          2 * state};
  add_sums(args, pieces, norm_sums, 1, places, stream);
}

HeadSumPlaces head_sum_places(const Mamba3Dims& dims) {
  const auto ranked_state = static_cast<int>(dims.rank * dims.state);
  const auto ranked_head = static_cast<int>(dims.mimo ? dims.rank * dims.head_dim : 0);
  HeadSumPlaces out{};
  const auto take = [&](int count) {
    out.elements += count;
    return out.elements - count;
  };
  out.dt_bias = take(1);
  out.skip = take(1);
  out.in_b_bias = take(ranked_state);
  out.out_c_bias = take(ranked_state);
  out.mimo_x = take(ranked_head);
  out.mimo_z = take(ranked_head);
  out.mimo_o = take(ranked_head);
  out.out_norm = take(dims.out_norm ? static_cast<int>(dims.head_dim) : 0);
  return out;
}

void add_head_sums(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces,
                   float* head_sums, int first_head, int heads, cudaStream_t stream) {
  const HeadSumPlaces at = head_sum_places(args.dims);
  add_sums(args, pieces, head_sums, heads,
           HeadPlaces{args.grad_params, at, first_head, at.elements}, stream);
}

}  // namespace mamba3
