// Before the chunked scan on a GPU: what all heads share of a token, and each head's numbers of it,
// go into the workspace, laid out as the scan reads them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "core/arena.h"
#include "device/kernel_helpers.cuh"
#include "ops/launch.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan/mamba3_scan.h"

namespace mamba3 {

// A stretch of a sequence that one block for each head walks. Slots below zero are of the
// workspace: -1 is its first.
struct ScanPiece {
  std::int32_t begin;  // tokens
  std::int32_t end;
  std::int32_t from;  // the slot with the state before it
  std::int32_t to;    // the slot that gets the state behind it
};

struct ChunkedScanJob {
  TokenSizes sizes;
  Mamba3Params params;
  Mamba3Columns columns;
  Mamba3States states;
  Mamba3States parts;              // the workspace's slots, see scan_parts_cuda.cuh
  const std::int64_t* cu_seqlens;  // [q + 1]
  const std::int32_t* slots;       // [q]
  std::int64_t tokens;
  std::int64_t sequences;
  const __nv_bfloat16* z;  // [t, h * p]
  const __nv_bfloat16* x;  // [t, h * p]
  std::int64_t zx_stride;
  void* y;  // [t, h * p] bf16 or fp32
  std::int64_t y_stride;
  bool y_bf16;

  // B and C divided by their root mean square, which makes them small enough for fp16: eight times
  // the precision of bf16. See canonical_place.
  __half* in_b;         // [g, t, r, n]
  __half* out_c;        // [g, t, r, n]
  double* dt;           // [h, t]
  double* log_decay;    // [h, t]
  float2* weights;      // [h, t]  gamma, and (1 - lam) dt
  double* half_tanh;    // [t, n / 2]  zero where nothing is rotated
  ScanPiece* pieces;    // of one walk
  const void* nothing;  // an address, where zeros are asked for
};

// The place among the canonical n of number `at` of a row here, where the pairs that one lane of a
// warp rotates stand side by side.
__host__ __device__ inline int canonical_place(const TokenSizes& sizes, int at) {
  const int lane_pairs = sizes.state / 2 / kWarpLanes;
  const int pair = at / 2 % lane_pairs * kWarpLanes + at / 2 / lane_pairs;
  return sizes.mimo ? pair + at % 2 * (sizes.state / 2) : 2 * pair + at % 2;
}

namespace {

constexpr int kPrepareThreads = 256;
constexpr int kPrepareWarps = kPrepareThreads / kWarpLanes;
constexpr int kMostLanePairs = 2;  // n is at most 128
// Finding the order takes time with the square of the number; beyond this many it is not worth it.
constexpr std::int64_t kMostOrdered = 2048;

// A warp takes a row of B or C.
__global__ void __launch_bounds__(kPrepareThreads) normalise_rows_kernel(const ChunkedScanJob job) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows_per_token = std::int64_t{sizes.rank} * sizes.groups;
  const std::int64_t rows = job.tokens * rows_per_token;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  std::int64_t row =
      std::int64_t{blockIdx.x} * kPrepareWarps + static_cast<int>(threadIdx.x) / kWarpLanes;
  if (row >= 2 * rows) return;
  const bool is_b = row < rows;
  if (!is_b) row -= rows;
  const std::int64_t token = row / rows_per_token;
  const int in_token = static_cast<int>(row - token * rows_per_token);
  const int r = in_token / sizes.groups;
  const int g = in_token - r * sizes.groups;
  const float* from = (is_b ? job.columns.in_b : job.columns.out_c) +
                      token * job.columns.row_stride + std::int64_t{in_token} * sizes.state;
  const int half = sizes.state / 2;
  const int lane_pairs = half / kWarpLanes;
  float2 held[kMostLanePairs];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kMostLanePairs; ++j) {
    const int pair = j * kWarpLanes + lane;
    held[j] = make_float2(0, 0);
    if (pair >= half) continue;
    held[j] = sizes.mimo ? make_float2(from[pair], from[pair + half])
                         : make_float2(from[2 * pair], from[2 * pair + 1]);
    squares += held[j].x * held[j].x + held[j].y * held[j].y;
  }
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, lanes);
  }
  const float scale =
      1.0f / sqrtf(squares / static_cast<float>(sizes.state) + static_cast<float>(kBcNormEps));
  auto* to = reinterpret_cast<__half2*>((is_b ? job.in_b : job.out_c) +
                                        ((g * job.tokens + token) * sizes.rank + r) * sizes.state);
#pragma unroll
  for (int j = 0; j < kMostLanePairs; ++j) {
    const int pair = j * kWarpLanes + lane;
    if (pair < half) {
      to[lane * lane_pairs + j] = __floats2half2_rn(held[j].x * scale, held[j].y * scale);
    }
  }
}

__device__ void weigh_token(const ChunkedScanJob& job, std::int64_t token, int head) {
  const std::int64_t from = token * job.columns.row_stride + head;
  const std::int64_t to = head * job.tokens + token;
  const TokenNumbers numbers =
      token_numbers(job.sizes, job.columns.dt_raw[from], job.params.dt_bias[head],
                    job.columns.decay_raw[from], job.columns.trap_raw[from]);
  job.dt[to] = numbers.dt;
  job.log_decay[to] = numbers.log_decay;
  job.weights[to] = make_float2(static_cast<float>(numbers.now), static_cast<float>(numbers.carry));
}

// A block takes 32 tokens of eight heads, which read one piece of memory; the blocks after those
// take the angles.
__global__ void __launch_bounds__(kPrepareThreads)
    token_numbers_of_heads_kernel(const ChunkedScanJob job, unsigned head_blocks) {
  const TokenSizes& sizes = job.sizes;
  if (blockIdx.x < head_blocks) {
    const unsigned across = (sizes.heads + kPrepareWarps - 1) / kPrepareWarps;
    const int head =
        static_cast<int>(blockIdx.x % across * kPrepareWarps + threadIdx.x / kWarpLanes);
    const std::int64_t token =
        std::int64_t{blockIdx.x / across} * kWarpLanes + threadIdx.x % kWarpLanes;
    if (head < sizes.heads && token < job.tokens) weigh_token(job, token, head);
    return;
  }
  const std::int64_t i = std::int64_t{blockIdx.x - head_blocks} * kPrepareThreads + threadIdx.x;
  const int half = sizes.state / 2;
  if (i >= job.tokens * half) return;
  const std::int64_t token = i / half;
  const int angle = static_cast<int>(i - token * half);
  const float* row = job.columns.angle_raw + token * job.columns.row_stride;
  job.half_tanh[i] = angle < sizes.angles ? half_tanh(row[angle]) : 0.0;
}

// z and x of an op that has them in fp32.
__global__ void __launch_bounds__(kPrepareThreads)
    round_columns_kernel(const Mamba3Columns columns, std::int64_t tokens, std::int64_t inner,
                         __nv_bfloat16* z, __nv_bfloat16* x) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (i >= tokens * inner) return;
  const std::int64_t from = i / inner * columns.row_stride + i % inner;
  z[i] = __float2bfloat16_rn(columns.z[from]);
  x[i] = __float2bfloat16_rn(columns.x[from]);
}

void round_columns(ChunkedScanJob& job, ArenaScope& scope, cudaStream_t stream) {
  const std::int64_t inner = std::int64_t{job.sizes.heads} * job.sizes.head_dim;
  auto* z = scope.allocate<__nv_bfloat16>(job.tokens * inner);
  auto* x = scope.allocate<__nv_bfloat16>(job.tokens * inner);
  round_columns_kernel<<<grid_blocks(job.tokens * inner, kPrepareThreads), kPrepareThreads, 0,
                         stream>>>(job.columns, job.tokens, inner, z, x);
  check_launch("mamba3_scan: rounding");
  job.z = z;
  job.x = x;
  job.zx_stride = inner;
}

__device__ ScanPiece whole_sequence(const ChunkedScanJob& job, std::int64_t sequence) {
  const std::int32_t slot = job.slots[sequence];
  return {static_cast<std::int32_t>(job.cu_seqlens[sequence]),
          static_cast<std::int32_t>(job.cu_seqlens[sequence + 1]), slot, slot};
}

// Every sequence is a piece, the longest first.
__global__ void __launch_bounds__(kPrepareThreads) order_kernel(const ChunkedScanJob job) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kPrepareThreads + threadIdx.x;
  if (i >= job.sequences) return;
  if (job.sequences > kMostOrdered) {
    job.pieces[i] = whole_sequence(job, i);
    return;
  }
  const std::int64_t own = job.cu_seqlens[i + 1] - job.cu_seqlens[i];
  int before = 0;
  for (std::int64_t j = 0; j < job.sequences; ++j) {
    const std::int64_t other = job.cu_seqlens[j + 1] - job.cu_seqlens[j];
    before += other > own || (other == own && j < i) ? 1 : 0;
  }
  job.pieces[before] = whole_sequence(job, i);
}

void take_chunked_workspace(ChunkedScanJob& job, ArenaScope& scope) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t shared = job.tokens * sizes.rank * sizes.groups * sizes.state;
  const std::int64_t pairs = job.tokens * sizes.heads;
  job.in_b = scope.allocate<__half>(shared);
  job.out_c = scope.allocate<__half>(shared);
  job.dt = scope.allocate<double>(pairs);
  job.log_decay = scope.allocate<double>(pairs);
  job.weights = scope.allocate<float2>(pairs);
  job.half_tanh = scope.allocate<double>(job.tokens * (sizes.state / 2));
}

void prepare_chunked_tokens(const ChunkedScanJob& job, cudaStream_t stream) {
  const TokenSizes& sizes = job.sizes;
  const std::int64_t rows = 2 * job.tokens * sizes.rank * sizes.groups;
  normalise_rows_kernel<<<grid_blocks(rows, kPrepareWarps), kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan: norms");
  const unsigned head_blocks = grid_blocks((job.tokens + kWarpLanes - 1) / kWarpLanes *
                                           ((sizes.heads + kPrepareWarps - 1) / kPrepareWarps));
  const unsigned angle_blocks = grid_blocks(job.tokens * (sizes.state / 2), kPrepareThreads);
  token_numbers_of_heads_kernel<<<head_blocks + angle_blocks, kPrepareThreads, 0, stream>>>(
      job, head_blocks);
  check_launch("mamba3_scan: numbers");
}

void order_sequences(ChunkedScanJob& job, ArenaScope& scope, cudaStream_t stream) {
  job.pieces = scope.allocate<ScanPiece>(job.sequences);
  order_kernel<<<grid_blocks(job.sequences, kPrepareThreads), kPrepareThreads, 0, stream>>>(job);
  check_launch("mamba3_scan: order");
}

}  // namespace
}  // namespace mamba3
