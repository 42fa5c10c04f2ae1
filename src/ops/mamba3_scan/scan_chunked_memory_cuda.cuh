// The shared memory of one block of the chunked scan, and how its warps hand chunks to each other.
// A chunk has 64 rows: one for each rank of each of its tokens.
#pragma once

#include <cstdint>
#include <utility>

#include "device/bulk_copy.cuh"
#include "device/gate.cuh"
#include "device/shared_memory.cuh"
#include "device/wgmma.cuh"
#include "ops/cuda_ops.h"
#include "ops/mamba3_scan/scan_chunked_math_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_tokens_cuda.cuh"

namespace mamba3 {
namespace {

// Calls f with the numbers from 0 on, as constants.
template <int kCount, class F>
__device__ __forceinline__ void for_each_number(const F& f) {
  [&]<int... kNumbers>(std::integer_sequence<int, kNumbers...>) {
    (f(std::integral_constant<int, kNumbers>{}), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

constexpr int kGroupThreads = 128;
constexpr int kGroupWarps = kGroupThreads / kWarpLanes;
// Warpgroups in the order of their threads: one makes outputs, one has the state, two rotate rows
// of K and Q.
constexpr int kStateThread = kGroupThreads;
constexpr int kRotatingThread = 2 * kGroupThreads;
constexpr int kRotatingThreads = 2 * kGroupThreads;
constexpr int kRotatingWarps = kRotatingThreads / kWarpLanes;
constexpr int kChunkThreads = kRotatingThread + kRotatingThreads;

constexpr int kStages = 2;  // chunks in shared memory: one is read while the next is prepared
constexpr int kChunkRows = 64;
constexpr int kChunkHeadDim = 64;
constexpr int kTileBytes = kChunkRows * kTileRowBytes;
constexpr int kPieceBytes = 16;
constexpr int kRowPieces = kTileRowBytes / kPieceBytes;
// At multiples of so many tokens from the start of a piece the last token's K and x are taken into
// the state in fp32, as they are where a piece begins: a cut there changes no bit.
constexpr int kGridTokens = static_cast<int>(kScanGridTokensCuda);

// kTurned: of a lane's pairs, those that may be rotated. kOutputs: without, only the state is
// carried on.
template <int kStateIn, int kRankIn, int kTurnedIn, bool kOutputsIn>
struct ChunkShape {
  static constexpr bool kOutputs = kOutputsIn;
  static constexpr int kState = kStateIn;
  static constexpr int kRank = kRankIn;
  static constexpr int kTurned = kTurnedIn;
  static constexpr int kTokens = kChunkRows / kRank;
  static constexpr int kWarpTokens = kTokens / kRotatingWarps;  // rotated by one warp
  static constexpr int kWarpRows = kChunkRows / kRotatingWarps;
  static constexpr int kSpreadingWarps = kRank == 1 ? 0 : kGroupWarps;  // those that make X
  // The first of the warps with the state sum the phases. Where chunks have few tokens these are
  // two, and the other two have made the weights by then.
  static constexpr int kTurningWarps = kRank == 1 ? kGroupWarps : 2;
  static constexpr int kTiles = kState / kTileColumns;        // side by side in a row of K
  static constexpr int kLanePairs = kState / 2 / kWarpLanes;  // of a row, rotated by one lane
  static constexpr int kRowBytes = kState * sizeof(__half);   // of B and C
  // Rows of B and C of the next chunk come to shared memory; where there is no room, to registers.
  static constexpr bool kRowsShared = kState == 64 || (kTurned == 1 && kRank != 2);
  // One rank's x is an operand; with several, what is skipped to y comes into its place, in fp32.
  static constexpr int kXRowBytes = kRank == 1 ? kTileRowBytes : kChunkHeadDim * sizeof(float);

  // An accumulator gives a thread rows i and i + 8 of its warp's 16: two ranks of one token.
  static __host__ __device__ constexpr unsigned row(unsigned token, unsigned rank) {
    if (kRank == 1) return token;
    if (kRank == 2) return token / 8 * 16 + rank * 8 + token % 8;
    return token / 4 * 16 + rank / 2 * 8 + token % 4 * 2 + rank % 2;
  }
};

// The last token before a stretch of the grid, in fp32: what the first one adds its share of.
template <class S>
struct TokenBefore {
  float2 k[S::kRank][S::kState / 2];
  float x[kChunkHeadDim];
};

template <class S>
struct alignas(1024) ChunkStage {
  static_assert(sizeof(TokenBefore<S>) <= kTileBytes);
  static constexpr int kSpreadBytes = S::kRank == 1 ? kPieceBytes : kTileBytes;
  // Q is multiplied with K and the state before the chunk in one product.
  struct {
    unsigned char k[kTileBytes];  // [row, n]
    unsigned char h[kTileBytes];  // [p, n]
    unsigned char q[kTileBytes];  // [row, n]
  } tiles[S::kTiles];
  // [row, p], see gate_place. Before them z is here, in the rows of a token's first rank, and after
  // them y, see y_place.
  float gates[kChunkRows * kChunkHeadDim];
  unsigned char x[S::kTokens * S::kXRowBytes];  // [t, p]; then the skips of y, see skip_place
  // Where x is spread over ranks, [row, p]: X, and X times the weights at the chunk's end.
  unsigned char own_x[kSpreadBytes];
  unsigned char faded_x[kSpreadBytes];

  // Until the first state is shown: the token before the piece.
  __device__ TokenBefore<S>& before() { return *reinterpret_cast<TokenBefore<S>*>(tiles[0].h); }
  __device__ std::uint32_t x_rows() const { return shared_address(S::kRank == 1 ? x : own_x); }
};

// What follows from a chunk's decays. Made two chunks ahead, and read until the chunk's outputs are
// there: by then those of three more chunks may stand beside it.
template <class S>
struct alignas(16) ChunkWeights {
  TokenTerms terms[S::kTokens];
  float start_decay[S::kTokens];  // of the state before the chunk
  float fade[S::kTokens];         // the weight of an outer product in the state behind it
  float chunk_decay;              // what that state is multiplied with
  float carry;                    // (1 - lam) dt of the token behind the chunk
};
constexpr int kWeightStages = 2 * kStages;

// From a tile of columns of K, Q, or of the state, to the next.
constexpr int kNextTile = 3 * kTileBytes;

// Rows of B and C of the next chunk, as they come from memory: those of one warp.
template <class S>
struct alignas(kPieceBytes) SharedRows {
  static constexpr int kBytes = S::kRowsShared ? S::kWarpRows * S::kRowBytes : kPieceBytes;
  unsigned char b[kBytes];
  unsigned char c[S::kOutputs ? kBytes : kPieceBytes];
};

// For the sums of what tokens turn, see scan_chunked_turns_cuda.cuh: what the lanes of one warp
// read.
template <class S>
struct TurnInputs {
  double half_tanh[S::kTurned][S::kTokens / S::kTurningWarps][kWarpLanes];
  double turning[S::kTokens];
};

// The phases of a chunk, in turns of 2^-32.
template <class S>
struct ChunkTurns {
  // A warp's lanes share its angles and, in so many parts, the chunk's tokens.
  static constexpr int kParts = S::kTurningWarps;
  static constexpr int kTokens = S::kTokens / kParts;
  struct Part {
    std::uint32_t turns[kTokens][S::kTurned * kWarpLanes];
    std::uint32_t apart[kWarpLanes / kParts];  // parts are written at once
  } parts[kParts];
  float broken[S::kTurned * kWarpLanes];  // 0, or NaN where a step is not finite

  __device__ __forceinline__ std::uint32_t of(unsigned token, unsigned angle) const {
    return parts[token / kTokens].turns[token % kTokens][angle];
  }
  // The byte of the same. Tokens of one part lie evenly.
  static __host__ __device__ constexpr unsigned place(unsigned token, unsigned angle) {
    return token / kTokens * sizeof(Part) +
           (token % kTokens * S::kTurned * kWarpLanes + angle) * sizeof(std::uint32_t);
  }
};

// Of [p], with room behind: rows of two ranks are read at once, from different banks.
using RankRow = float[kChunkHeadDim + 8];

template <class S>
struct ChunkMemory {
  ChunkStage<S> stages[kStages];
  // Of a stage's last token, where a stretch of the grid or the sequence ends with it.
  TokenBefore<S> kept[kStages];
  RankRow mimo_x[S::kRank];
  RankRow skip_x[S::kRank];  // D mimo_x
  float out_norm[kChunkHeadDim];
  SharedRows<S> rows[kRotatingWarps];
  unsigned char next_x[S::kRank == 1 ? kPieceBytes : S::kTokens * kTileRowBytes];  // [t, p]
  TurnInputs<S> turn_inputs[S::kTurningWarps];
  ChunkTurns<S> turns[kStages];
  ChunkWeights<S> weights[kWeightStages];
  ScanPiece piece;  // the block's, and its head

  // Who fills a stage does not order what it wrote before the tensor cores' reads: who starts a
  // product does, once for all that it reads (fence_async_proxy).
  Barrier brought[kRotatingWarps];  // rows of B and C
  Barrier turned[kStages];          // phases and weights
  Barrier filled[kStages];          // everything of a chunk but h
  Barrier shown[kStages];           // h
  Barrier emptied[kStages];         // of K, Q, h and what the state takes of X
  Barrier written[kStages];         // y, with the rest

  __device__ void init_barriers() {
    for (Barrier& of_warp : brought) barrier_init(&of_warp, 1);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&turned[i], kWarpArrivals * kGroupWarps);
      barrier_init(&filled[i], kWarpArrivals * (kRotatingWarps + S::kSpreadingWarps));
      barrier_init(&shown[i], kWarpArrivals * kGroupWarps);
      barrier_init(&emptied[i], kWarpArrivals * (S::kOutputs ? 2 : 1) * kGroupWarps);
      barrier_init(&written[i], kWarpArrivals * kGroupWarps);
    }
    barrier_init_done();
  }
};

// The byte in a stage's gates of row `row` and column `column`. Eight rows' blocks of eight
// columns, which a warp reads at once, lie in different banks.
constexpr int kGateRowBytes = kChunkHeadDim * sizeof(float);
__host__ __device__ constexpr unsigned gate_place(unsigned row, unsigned column) {
  return row * kGateRowBytes + (((column >> 3) ^ row) & 7) * 32 + (column & 7) * 4;
}
// The same for y in bf16, which comes there later.
__device__ __forceinline__ unsigned y_place(unsigned row, unsigned column) {
  return row * kGateRowBytes + swizzled(row % 8, column) - row % 8 * kTileRowBytes;
}

// The byte in a stage's x of a token's column, and of what is skipped to y there. Where y is made,
// a warp reads one block of eight columns of eight tokens, or two of four, from different banks.
template <class S>
__device__ __forceinline__ unsigned place_in_x(unsigned token, unsigned column) {
  return swizzled(token, column) + token * (S::kXRowBytes - kTileRowBytes);
}
template <class S>
__device__ __forceinline__ unsigned skip_place(unsigned token, unsigned column) {
  return token * S::kXRowBytes + (((column >> 3) ^ 2 * token) & 7) * 32 + (column & 7) * 4;
}

// The compiler shall know that all lanes have the same: addresses of products are made for warps.
__device__ __forceinline__ unsigned uniform(unsigned number) {
  return __shfl_sync(0xffffffffu, number, 0);
}

// Which stage a chunk has, and how often stages were used before.
struct StageCursor {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ int uniform_stage() const {
    return static_cast<int>(uniform(static_cast<unsigned>(stage)));
  }
  // The chunk's place among weights.
  __device__ __forceinline__ unsigned weights() const { return stage + parity * kStages; }
  __device__ __forceinline__ void next() {
    static_assert(kStages == 2);
    stage ^= 1;
    if (stage == 0) parity ^= 1;
  }
};

// Of the warps that have the state alone.
__device__ __forceinline__ void sync_state() {
  sync_threads(1, kGroupThreads);
}

// One block's part of the work, and one thread's in it.
struct ChunkPlace {
  int begin;  // tokens
  int end;
  int head;
  int group;
  unsigned warp;  // unsigned: parts of these are found by shifts and masks
  unsigned lane;

  __device__ ChunkPlace(const ChunkedScanJob& job, const ScanPiece& piece) {
    head = piece.head;
    begin = piece.begin;
    end = piece.end;
    group = head / (job.sizes.heads / job.sizes.groups);
    warp = threadIdx.x / kWarpLanes;
    lane = threadIdx.x % kWarpLanes;
  }
};

// What the block walks, by one thread. Where one piece waits for another, the first blocks to start
// have the first pieces, so that the other one is under way.
__device__ __forceinline__ ScanPiece take_piece(const ChunkedScanJob& job) {
  const unsigned number = job.taken == nullptr ? blockIdx.x : atomicAdd(job.taken, 1u);
  const auto heads = static_cast<unsigned>(job.piece_heads);
  ScanPiece piece = job.pieces[number / heads];
  piece.head += static_cast<int>(number % heads);
  if (piece.gate > 0) wait_for_gate(job.gates + piece.gate);
  return piece;
}

// What one head has in a slot.
struct HeadState {
  float* ssm;            // [n, p]
  float* k;              // [r, n]
  float* v;              // [p]
  std::uint32_t* turns;  // [s]
  std::int64_t rank_stride;

  __device__ __forceinline__ HeadState(const ChunkedScanJob& job, int slot, int head) {
    const TokenSizes& sizes = job.sizes;
    const Mamba3States& states = slot < 0 ? job.parts : job.states;
    const std::int64_t number = slot < 0 ? ~slot : slot;
    ssm =
        states.ssm + number * states.ssm_stride + std::int64_t{head} * sizes.state * kChunkHeadDim;
    k = states.k + number * states.k_stride + std::int64_t{head} * sizes.state;
    v = states.v + number * states.v_stride + head * kChunkHeadDim;
    turns = states.turns + number * states.turns_stride + std::int64_t{head} * sizes.angles;
    rank_stride = std::int64_t{sizes.heads} * sizes.state;
  }
};

// Before a block's piece, and behind it.
__device__ __forceinline__ HeadState start_state(const ChunkedScanJob& job,
                                                 const ScanPiece& piece) {
  return {job, piece.from, piece.head};
}
__device__ __forceinline__ HeadState end_state(const ChunkedScanJob& job, const ScanPiece& piece) {
  return {job, piece.to, piece.head};
}

// Pair `i` of a row of parameters or of a state's k.
__device__ __forceinline__ float2 canonical_pair(const TokenSizes& sizes, const float* row, int i) {
  return make_float2(row[canonical_place(sizes, 2 * i)], row[canonical_place(sizes, 2 * i + 1)]);
}

// A head's parameters and the end of what came before.
template <class S>
__device__ void load_head(const ChunkedScanJob& job, const ChunkPlace& at, ChunkMemory<S>& m) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Params& params = job.params;
  const HeadState start = start_state(job, m.piece);
  const int thread = static_cast<int>(threadIdx.x);
  TokenBefore<S>& before = m.stages[0].before();
  for (int i = thread; i < S::kState / 2; i += kChunkThreads) {
    for (int r = 0; r < S::kRank; ++r) {
      before.k[r][i] = canonical_pair(sizes, start.k + r * start.rank_stride, i);
    }
  }
  for (int p = thread; p < kChunkHeadDim; p += kChunkThreads) {
    before.x[p] = start.v[p];
    if (sizes.out_norm) m.out_norm[p] = params.out_norm[at.head * kChunkHeadDim + p];
    for (int r = 0; r < S::kRank; ++r) {
      const int from = (at.head * S::kRank + r) * kChunkHeadDim + p;
      m.mimo_x[r][p] = S::kRank == 1 ? 1.0f : params.mimo_x[from];
      m.skip_x[r][p] = params.skip[at.head] * m.mimo_x[r][p];
    }
  }
}

// By the warpgroup that has the state.
template <class S>
__device__ void store_end(const ChunkedScanJob& job, const HeadState& end,
                          const TokenBefore<S>& last) {
  const int thread = static_cast<int>(threadIdx.x) - kStateThread;
  for (int i = thread; i < S::kState / 2; i += kGroupThreads) {
    for (int r = 0; r < S::kRank; ++r) {
      float* to = end.k + r * end.rank_stride;
      to[canonical_place(job.sizes, 2 * i)] = last.k[r][i].x;
      to[canonical_place(job.sizes, 2 * i + 1)] = last.k[r][i].y;
    }
  }
  for (int p = thread; p < kChunkHeadDim; p += kGroupThreads) end.v[p] = last.x[p];
}

// Where registers are few, addresses are cheap to find anew and dear to keep: a register that is
// spilled costs a trip to the second-level cache, so nothing that depends on the lane may move out
// of a loop over chunks.
__device__ __forceinline__ void forget_lane(ChunkPlace& at) {
  asm volatile("" : "+r"(at.lane), "+r"(at.warp));
}

// The opposite, where they are many: a number that is kept, for no compiler knows how to find anew
// what has come through the lanes.
__device__ __forceinline__ std::uint32_t held(std::uint32_t number) {
  return __shfl_sync(0xffffffffu, number, threadIdx.x % kWarpLanes);
}

// The token of a chunk that is kept in fp32, or -1.
template <class S>
__device__ __forceinline__ int kept_token(const ChunkPlace& at, int begin) {
  const int next = begin + S::kTokens;
  const bool ends = (next - at.begin) % kGridTokens == 0 || next >= at.end;
  return ends ? min(next, at.end) - begin - 1 : -1;
}

}  // namespace
}  // namespace mamba3
