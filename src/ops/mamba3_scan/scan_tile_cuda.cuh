// A tile of tokens in the shared memory of one block of the scan on a GPU: comes in from the
// columns and the workspace, gets its phases, biases and rotation, and hands its last token on to
// the next.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/mamba3_scan/scan_tokens_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kSlices = kScanWarps;
constexpr int kColumns = kWarpLanes;

// The shared memory of one block. K and x have a row more than the tile has tokens: the first is
// the previous token's.
struct Tile {
  int pitch;              // of rows of K and Q
  TokenWeights* weights;  // [t]
  std::uint32_t* turns;   // [2, s] before the tile, and after it; they change places
  std::uint32_t* moves;   // [t, s]
  float* cosine;          // [t, s]
  float* sine;            // [t, s]
  float* k;               // [1 + t, r, pitch]
  float* q;               // [t, r, pitch]
  float* x;               // [1 + t, columns]
  float* z;               // [t, columns]
  float* mimo_x;          // [r, columns], ones without MIMO
  float* partial;         // [t, r, slices, columns]

  __host__ __device__ Tile(const TokenSizes& sizes, int rows, int tokens, SharedParts& parts) {
    pitch = (sizes.state + rows - 1) / rows * rows;
    weights = parts.take<TokenWeights>(tokens);
    turns = parts.take<std::uint32_t>(2 * sizes.angles);
    moves = parts.take<std::uint32_t>(tokens * sizes.angles);
    cosine = parts.take<float>(tokens * sizes.angles);
    sine = parts.take<float>(tokens * sizes.angles);
    k = parts.take<float>((1 + tokens) * sizes.rank * pitch);
    q = parts.take<float>(tokens * sizes.rank * pitch);
    x = parts.take<float>((1 + tokens) * kColumns);
    z = parts.take<float>(tokens * kColumns);
    mimo_x = parts.take<float>(sizes.rank * kColumns);
    partial = parts.take<float>(tokens * sizes.rank * kSlices * kColumns);
  }
};

// One block's part of the work, and one thread's in it.
struct Place {
  std::int64_t sequence;
  std::int64_t slot;
  int head;
  int group;
  bool first_columns;  // who also writes what all blocks of the head have alike
  int column;          // of the head
  bool inside;         // the column exists
  int warp;            // the slice
  int lane;

  __device__ explicit Place(const ScanJob& job) {
    const TokenSizes& sizes = job.sizes;
    const unsigned chunks = (sizes.head_dim + kColumns - 1) / kColumns;
    const unsigned chunk = blockIdx.x % chunks;
    const unsigned pair = blockIdx.x / chunks;
    head = static_cast<int>(pair % sizes.heads);
    sequence = pair / sizes.heads;
    slot = job.slots[sequence];
    group = head / (sizes.heads / sizes.groups);
    first_columns = chunk == 0;
    warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    lane = static_cast<int>(threadIdx.x) % kWarpLanes;
    column = static_cast<int>(chunk) * kColumns + lane;
    inside = column < sizes.head_dim;
  }
  __device__ float* ssm(const ScanJob& job) const {
    const std::int64_t head_size = std::int64_t{job.sizes.state} * job.sizes.head_dim;
    return job.states.ssm + slot * job.states.ssm_stride + head * head_size + column;
  }
  __device__ float* v(const ScanJob& job) const {
    return job.states.v + slot * job.states.v_stride + std::int64_t{head} * job.sizes.head_dim +
           column;
  }
  // Of x and z, in a row of the columns; of y, in its row.
  __device__ std::int64_t own_column(const ScanJob& job) const {
    return std::int64_t{head} * job.sizes.head_dim + column;
  }
};

// The state's K and x become the tile's first rows.
__device__ void load_start(const ScanJob& job, const Place& at, const Tile& tile) {
  const TokenSizes& sizes = job.sizes;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t pair = at.sequence * sizes.heads + at.head;
  for (int i = thread; i < sizes.angles; i += kScanThreads) {
    tile.turns[i] = job.starts.turns[pair * sizes.angles + i];
  }
  for (int r = 0; r < sizes.rank; ++r) {
    const float* from =
        job.starts.k + ((at.sequence * sizes.rank + r) * sizes.heads + at.head) * sizes.state;
    for (int j = thread; j < sizes.state; j += kScanThreads) tile.k[r * tile.pitch + j] = from[j];
  }
  const HeadGate gate = head_gate(sizes, job.params, at.head);
  for (int r = at.warp; r < sizes.rank; r += kScanWarps) {
    tile.mimo_x[r * kColumns + at.lane] = at.inside ? own_x(gate, r, at.column, 1.0f) : 0.0f;
  }
  if (at.warp == 0) tile.x[at.lane] = at.inside ? *at.v(job) : 0.0f;
}

__device__ void store_end(const ScanJob& job, const Place& at, const Tile& tile,
                          const std::uint32_t* turns) {
  const TokenSizes& sizes = job.sizes;
  const int thread = static_cast<int>(threadIdx.x);
  if (at.warp == 0 && at.inside) *at.v(job) = tile.x[at.lane];
  if (!at.first_columns) return;
  std::uint32_t* to_turns =
      job.states.turns + at.slot * job.states.turns_stride + std::int64_t{at.head} * sizes.angles;
  for (int i = thread; i < sizes.angles; i += kScanThreads) to_turns[i] = turns[i];
  for (int r = 0; r < sizes.rank; ++r) {
    float* to = job.states.k + at.slot * job.states.k_stride +
                (std::int64_t{r} * sizes.heads + at.head) * sizes.state;
    for (int j = thread; j < sizes.state; j += kScanThreads) to[j] = tile.k[r * tile.pitch + j];
  }
}

// Asks for a row [n] of the workspace; only whole rows of four can come four by four.
__device__ __forceinline__ void request_row(const float* from, int count, int lane, float* to) {
  if (count % 4 == 0) {
    for (int j = 4 * lane; j < count; j += 4 * kWarpLanes) {
      __pipeline_memcpy_async(to + j, from + j, 4 * sizeof(float));
    }
  } else {
    for (int j = lane; j < count; j += kWarpLanes) {
      __pipeline_memcpy_async(to + j, from + j, sizeof(float));
    }
  }
}

// The tile's rows, as they are before bias and rotation.
__device__ void request_tile(const ScanJob& job, const Place& at, const Tile& tile,
                             std::int64_t begin, int tokens) {
  const TokenSizes& sizes = job.sizes;
  const int rank = sizes.rank;
  for (int row = at.warp; row < tokens * rank; row += kScanWarps) {
    const std::int64_t from = ((begin * rank + row) * sizes.groups + at.group) * sizes.state;
    request_row(job.normed_b + from, sizes.state, at.lane, tile.k + (rank + row) * tile.pitch);
    request_row(job.normed_c + from, sizes.state, at.lane, tile.q + row * tile.pitch);
  }
  for (int t = at.warp; t < tokens; t += kScanWarps) {
    if (!at.inside) continue;
    const std::int64_t from = (begin + t) * job.columns.row_stride + at.own_column(job);
    __pipeline_memcpy_async(tile.x + (1 + t) * kColumns + at.lane, job.columns.x + from,
                            sizeof(float));
    __pipeline_memcpy_async(tile.z + t * kColumns + at.lane, job.columns.z + from, sizeof(float));
  }
  __pipeline_commit();
}

// How far each token moves each phase. The cosine's place keeps whether it is a NaN.
__device__ void move_phases(const ScanJob& job, const Place& at, const Tile& tile,
                            std::int64_t begin, int tokens) {
  const TokenSizes& sizes = job.sizes;
  const int thread = static_cast<int>(threadIdx.x);
  const TokenWeights* weights = job.weights + begin * sizes.heads + at.head;
  if (thread < tokens) tile.weights[thread] = weights[std::int64_t{thread} * sizes.heads];
  for (int i = thread; i < tokens * sizes.angles; i += kScanThreads) {
    const std::int64_t t = i / sizes.angles;
    bool finite = true;
    tile.moves[i] = turns_moved(job.half_tanh[begin * sizes.angles + i],
                                weights[t * sizes.heads].turning, finite);
    tile.cosine[i] = finite ? 0.0f : nanf("");
  }
}

// Phases by a sum over the tile's tokens, which is exact in any order.
__device__ void turn(const TokenSizes& sizes, const Tile& tile, int tokens,
                     const std::uint32_t* before, std::uint32_t* after) {
  for (int i = static_cast<int>(threadIdx.x); i < tokens * sizes.angles; i += kScanThreads) {
    const int t = i / sizes.angles;
    const int angle = i - t * sizes.angles;
    std::uint32_t turns = before[angle];
    for (int u = 0; u <= t; ++u) turns += tile.moves[u * sizes.angles + angle];
    const bool finite = tile.cosine[i] == 0.0f;
    cos_sin_of_turns(turns, finite, tile.cosine[i], tile.sine[i]);
    if (t == tokens - 1) after[angle] = turns;
  }
}

// K and Q in place.
__device__ void rotate(const ScanJob& job, const Place& at, const Tile& tile, int tokens) {
  const TokenSizes& sizes = job.sizes;
  const int rank = sizes.rank;
  for (int row = at.warp; row < tokens * rank; row += kScanWarps) {
    const int t = row / rank;
    const std::int64_t r = row - t * rank;
    const std::int64_t bias_at = (std::int64_t{at.head} * rank + r) * sizes.state;
    const auto turn_row = [&](float* values, const float* bias) {
      rotate_row(
          sizes, tile.cosine + t * sizes.angles, tile.sine + t * sizes.angles, at.lane, kWarpLanes,
          [&](int j) { return __fadd_rn(values[j], bias[j]); },
          [&](int j, float value) { values[j] = value; });
    };
    turn_row(tile.k + (rank + row) * tile.pitch, job.params.in_b_bias + bias_at);
    turn_row(tile.q + row * tile.pitch, job.params.out_c_bias + bias_at);
  }
}

// The last token's K and x become the first rows.
__device__ void carry_over(const TokenSizes& sizes, const Place& at, const Tile& tile, int tokens) {
  const int count = sizes.rank * tile.pitch;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kScanThreads) {
    tile.k[i] = tile.k[tokens * count + i];
  }
  if (at.warp == 0) tile.x[at.lane] = tile.x[tokens * kColumns + at.lane];
}

}  // namespace
}  // namespace mamba3
