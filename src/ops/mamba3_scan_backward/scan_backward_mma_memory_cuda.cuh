// What the blocks of the backward pass on tensor cores are given and what they have in shared
// memory.
//
// A block walks one head of one sequence in chunks of 64 rows, a row for each rank of a token.
// Pairs of n that are rotated together stand side by side, as in the scan by mma.sync.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "device/bulk_copy.cuh"
#include "device/wgmma.cuh"
#include "ops/mamba3_scan/scan_mma_memory_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_columns_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_sums_cuda.h"

namespace mamba3 {

struct BackwardMmaJob {
  MmaScanJob scan;  // what the forward pass read, and the numbers of its tokens
  const __nv_bfloat16* grad_y;
  std::int64_t grad_y_stride;
  GradientColumns grads;
  int zero_columns;  // behind those of angles
  Mamba3StateGradients grad_states;
  HeadSumPlaces places;
  int multiprocessors;

  int chain;              // heads of one
  std::uint8_t* chained;  // [t] whether chains were walked by one block
  void* decays;           // [chunks, h] ChunkDecays
  // Left by the pass forward.
  __half2* cos_sin;       // [h, t, turn_stride(s)]
  __nv_bfloat16* states;  // [chunks, h, n, p] at the start of each chunk: tiles of 64 columns
  // Left by the walk back, to be summed over heads. Columns are as gradient_column() has them.
  __nv_bfloat16* grad_b;   // [h, t, r, n] with respect to what the bias is added to
  __nv_bfloat16* grad_c;   // [h, t, r, n]
  float* grad_phase;       // [h, t, s] with respect to the phase
  float* grad_log_decay;   // [h, t]
  float* grad_now;         // [h, t]
  float* grad_carry;       // [h, t]
  float* grad_dt;          // [h, t] through the phases; then, of dt_raw
  const int* first_piece;  // [q] a sequence is a piece
  float* head_sums;        // [pieces, h, places.elements]
};

namespace {

// Of a token's rotations: in shared memory eight tokens' lie in different banks.
__host__ __device__ constexpr int turn_stride(int angles) {
  return angles + 4;
}

constexpr int kBackwardHeadDim = 64;
constexpr int kBackwardRows = 64;
constexpr int kRowTiles = kBackwardRows / 16;
// Weights of a head's columns: of each eight the first four stand before the last four of all, so
// that eight threads with eight columns each, and four ranks' quads, find theirs in different
// banks.
constexpr int kWeightRow = kBackwardHeadDim + 8;
constexpr unsigned kLastFour = kBackwardHeadDim / 2 + 4;
__host__ __device__ constexpr unsigned weight_place(unsigned column) {
  return column / 8 * 4 + column % 8 / 4 * kLastFour + column % 4;
}
// Of the head's columns as they were asked for.
constexpr unsigned kInputRow = row_bytes(kBackwardHeadDim);
// Factors lie in tiles of 64 columns as device/wgmma.cuh has them; so many bytes are 64 rows.
constexpr unsigned kTileBytes = kBackwardRows * kTileRowBytes;
static_assert(kBackwardHeadDim == kTileColumns);

// Of the walk back.
constexpr int kBackwardThreads = 512;
constexpr int kBackwardWarps = kBackwardThreads / kWarpLanes;
constexpr unsigned kPhaseWarps = 8;  // that tell the gradients of phases

template <int kStateIn, int kRankIn>
struct BackwardShape {
  static constexpr int kState = kStateIn;
  static constexpr int kRank = kRankIn;
  static constexpr int kTokens = kBackwardRows / kRank;
  static constexpr int kPairs = kState / 2;
  static constexpr int kStateSteps = kState / 16;
  // Behind a rank's sums, so that those of every rank lie in different banks.
  static constexpr int kSumPad = kRank == 1 ? 0 : 32 / kRank;
  // Of a chunk's tokens, where each of those warps' lanes has one angle.
  static constexpr unsigned kPhaseGroups = kPhaseWarps * kWarpLanes / kPairs;
  static constexpr unsigned kRowsBytes = kState / kTileColumns * kTileBytes;  // of K or Q
};

// The compiler knows that a warp's number is the same in all lanes, so what follows from it needs
// no registers of theirs.
struct WarpPlace : MmaPlace {
  __device__ __forceinline__ explicit WarpPlace(const MmaScanJob& job) : MmaPlace(job) {
    warp = __shfl_sync(0xffffffffu, warp, 0);
  }
};

// A chunk's tokens [begin, begin + tokens) as far as they are there.
struct BackwardChunk {
  std::int64_t number;  // among those of all sequences
  int begin;
  int tokens;

  template <class S>
  static __device__ __forceinline__ BackwardChunk at(const MmaPlace& place, int index) {
    const int begin = place.begin + index * S::kTokens;
    return {place.begin / S::kTokens + place.sequence + index, begin,
            min(S::kTokens, place.end - begin)};
  }
};

constexpr std::uint32_t chunk_decays_bytes(int rank) {
  return static_cast<std::uint32_t>(kBackwardRows / rank * (sizeof(TokenTerms) + 12) + 16);
}

// What follows from the decays of a chunk's tokens. Behind the end of the sequence nothing decays,
// and weights are zeros.
template <class S>
struct alignas(16) ChunkDecays {
  TokenTerms terms[S::kTokens];
  float start_decay[S::kTokens];  // of the state before the chunk
  float end_decay[S::kTokens];    // of what a token writes, at the chunk's end
  float fade[S::kTokens];         // the same times its weight
  float whole;                    // of the state, over the chunk

  static constexpr std::uint32_t kBytes = chunk_decays_bytes(S::kRank);
};

// What a chunk's keys are made of, as it was asked for. Behind the end of the sequence stand zeros.
template <class S>
struct alignas(16) KeyInputs {
  __half b[kBackwardRows * S::kState];      // [row, n]
  unsigned char x[S::kTokens * kInputRow];  // [t, p]
};

// What a chunk's keys take, forward and back.
template <class S>
struct alignas(1024) KeyMemory {
  unsigned char k[S::kRowsBytes];  // [row, n]
  unsigned char x[kTileBytes];     // [row, p] X of every rank, forward as it fades
  // Of the head.
  float2 b_norm[S::kPairs];
  float2 b_bias[S::kRank][S::kPairs];
  alignas(16) float mimo_x[S::kRank][kWeightRow];  // SISO: ones
  ChunkDecays<S> decays[2];                        // by the parity of a chunk's number
  Barrier rows_came;                               // raw ones
  Barrier state_came;                              // in the walk
};

// What gradients of the numbers of a chunk's tokens are summed from.
template <class S>
struct ChunkSums {
  // [tile, row] Of a tile of 16 rows before the row's own, what the row reads there; of its own and
  // of those behind, what they read of it, as a column, without its weight.
  float between[kRowTiles][kBackwardRows];
  float inside[2][S::kTokens];  // of left columns of tiles on the diagonal, and of right ones
  float now[kBackwardRows];
  // [half of p, row] What rows have in common with the state at the chunk's start, before it
  // decays, and at its end.
  float start[2][kBackwardRows];
  float end[2][kBackwardRows];
  float states[kBackwardWarps];
};

// All of it; behind it stand cos_sin[2][kTokens][turn_stride].
template <class S>
struct BackwardMemory : KeyMemory<S> {
  KeyInputs<S> keys;                             // of the chunk in hand, or of the one that follows
  alignas(1024) unsigned char q[S::kRowsBytes];  // [row, n]
  unsigned char state[S::kState * kTileRowBytes];       // [n, p] G, at the chunk's start
  unsigned char grad_state[S::kState * kTileRowBytes];  // [n, p] E, of the state at its end
  unsigned char grad_o[kTileBytes];                     // [row, p]
  unsigned char decayed_grad_o[kTileBytes];             // the same times start_decay
  unsigned char grad_scores[kTileBytes];                // [row, row], zeros above the diagonal
  union {
    unsigned char scores[kTileBytes];                // [row, row] with their weights
    float grad_turns[S::kTokens * (S::kPairs + 4)];  // [t, s] when nobody needs scores
  };
  union {
    __half raw_c[kBackwardRows * S::kState];
    float4 given[2][kBackwardThreads];  // by threads to each other, while no rows are there
  };
  unsigned char raw_z[S::kTokens * kInputRow];
  unsigned char raw_grad_y[S::kTokens * kInputRow];
  float2 c_norm[S::kPairs];
  float2 c_bias[S::kRank][S::kPairs];
  alignas(16) float mimo_z[S::kRank][kWeightRow];
  alignas(16) float mimo_o[S::kRank][kWeightRow];
  ChunkSums<S> sums[2];  // by the parity of a chunk's number
  float phase[2][S::kPairs];
  float group_phase[S::kPhaseGroups][S::kPairs];
  Barrier inside_came;  // all of a chunk's sums `inside`
  Barrier phases_came;  // group_phase of every group
  // Sums over the sequence.
  float bias_sums[2][kRowTiles][S::kRank][S::kState + S::kSumPad];  // of B, of C
  // Of mimo_x, z, o.
  float gate_sums[S::kRank == 1 ? 1 : 3][kRowTiles][S::kRank][kBackwardHeadDim + S::kSumPad];

  // When no chunk is left: the gradient [n, p] of the sequence's first state, rows kStartRow apart,
  // and that state's k [r, n].
  static constexpr int kStartRow = kBackwardHeadDim + 1;
  __device__ __forceinline__ float* start_grad() {
    static_assert(sizeof(float) * S::kState * kStartRow <= sizeof(q) + sizeof(state) * 2);
    return reinterpret_cast<float*>(q);
  }
  __device__ __forceinline__ float* start_k() {
    static_assert(sizeof(float) * S::kRank * S::kState <= sizeof(raw_c));
    return reinterpret_cast<float*>(raw_c);
  }

  __device__ __forceinline__ __half2* cos_sin(int parity, int angles) {
    return reinterpret_cast<__half2*>(this + 1) + parity * S::kTokens * turn_stride(angles);
  }
  static __host__ __device__ int bytes(int angles) {
    return static_cast<int>(sizeof(BackwardMemory)) +
           2 * S::kTokens * turn_stride(angles) * static_cast<int>(sizeof(__half2));
  }
};

// A chunk's rows of B or C, as they are before bias and rotation: by one lane.
template <class S>
__device__ __forceinline__ void request_raw(const BackwardMmaJob& job, const MmaPlace& at,
                                            const BackwardChunk& chunk, const __half* from,
                                            __half* to, Barrier* barrier) {
  constexpr int kRow = S::kRank * S::kState;  // of a token
  bulk_copy(to, from + (std::int64_t{at.group} * job.scan.tokens + chunk.begin) * kRow,
            static_cast<std::uint32_t>(chunk.tokens * kRow * sizeof(__half)), barrier);
}

// Asks for the head's columns in x, z or grad_y, for as many rows as are there.
template <int kThreads, class S>
__device__ __forceinline__ void request_columns(const MmaPlace& at, const BackwardChunk& chunk,
                                                const __nv_bfloat16* from, std::int64_t stride,
                                                unsigned char* to) {
  constexpr int kPieces = kBackwardHeadDim / 8;
  constexpr int kAtOnce = kThreads / kPieces;
  const int row = static_cast<int>(threadIdx.x) / kPieces;
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  if (row >= chunk.tokens) return;
  const std::uint32_t own_to = shared_address(to) + row * kInputRow + 16 * piece;
  const __nv_bfloat16* own =
      from + (chunk.begin + row) * stride + std::int64_t{at.head} * kBackwardHeadDim + 8 * piece;
#pragma unroll
  for (int i = 0; i < S::kTokens; i += kAtOnce) {
    if (row + i < chunk.tokens) copy_piece_async(own_to + i * kInputRow, own + i * stride, true);
  }
}

template <class S>
__device__ __forceinline__ ChunkDecays<S>* decays_of(const BackwardMmaJob& job, const MmaPlace& at,
                                                     const BackwardChunk& chunk) {
  return static_cast<ChunkDecays<S>*>(job.decays) + chunk.number * job.scan.sizes.heads + at.head;
}

// Zeros everywhere in a block's memory, for what is behind the end of a sequence, and the barriers.
template <int kThreads, class S>
__device__ __forceinline__ void open_memory(unsigned char* memory, int bytes, KeyMemory<S>& m) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < bytes / 16; i += kThreads) {
    reinterpret_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
  if (thread == 0) {
    barrier_init(&m.rows_came, 1);
    barrier_init(&m.state_came, 1);
    barrier_init_done();
  }
  fence_async_proxy();
  __syncthreads();
}

// So that it may be opened again.
template <class S>
__device__ __forceinline__ void close_memory(KeyMemory<S>& m) {
  if (threadIdx.x == 0) {
    barrier_close(&m.rows_came);
    barrier_close(&m.state_came);
  }
  __syncthreads();
}

// Biases and weights of norms, pairs side by side, and rank weights.
template <int kThreads, class S>
__device__ __forceinline__ void load_pairs(const TokenSizes& sizes, const float* norm,
                                           const float* bias, int head, float2* to_norm,
                                           float2 (*to_bias)[S::kPairs]) {
  for (int i = static_cast<int>(threadIdx.x); i < S::kRank * S::kPairs; i += kThreads) {
    const int r = i / S::kPairs, pair = i % S::kPairs;
    const std::int64_t row = (std::int64_t{head} * S::kRank + r) * S::kState;
    to_bias[r][pair] = canonical_pair(sizes, bias + row, pair);
    if (r == 0) to_norm[pair] = canonical_pair(sizes, norm, pair);
  }
}

template <int kThreads, class S>
__device__ __forceinline__ void load_rank_weights(const float* from, int head,
                                                  float (*to)[kWeightRow]) {
  constexpr int kCount = S::kRank * kBackwardHeadDim;
  for (int i = static_cast<int>(threadIdx.x); i < kCount; i += kThreads) {
    to[i / kBackwardHeadDim][weight_place(i % kBackwardHeadDim)] =
        from == nullptr ? 1.0f : from[std::int64_t{head} * kCount + i];
  }
}

// Two neighbours in a row of x, z or grad_y.
__device__ __forceinline__ float2 input_pair(const unsigned char* rows, unsigned token,
                                             unsigned column) {
  return wide_pair(*reinterpret_cast<const std::uint32_t*>(rows + token * kInputRow + 2 * column));
}

// The byte of a column in tiles of 64 columns.
__device__ __forceinline__ unsigned tile_byte(unsigned row, unsigned column) {
  return column / kTileColumns * kTileBytes + swizzled(row, column % kTileColumns);
}
// From such a byte that of a place so many rows and eighths of columns further, which add to the
// place's own without a carry.
__device__ __forceinline__ unsigned further(unsigned byte, unsigned rows, unsigned eighths) {
  return (byte ^ ((eighths ^ rows) % 8 * 16)) + rows * kTileRowBytes;
}
// Two neighbours of a tile.
__device__ __forceinline__ float2 tile_pair(const unsigned char* tile, unsigned byte) {
  return wide_pair(*reinterpret_cast<const std::uint32_t*>(tile + byte));
}
__device__ __forceinline__ void put_tile_pair(unsigned char* tile, unsigned byte, float a,
                                              float b) {
  *reinterpret_cast<std::uint32_t*>(tile + byte) = pack_bf16(a, b);
}

}  // namespace
}  // namespace mamba3
