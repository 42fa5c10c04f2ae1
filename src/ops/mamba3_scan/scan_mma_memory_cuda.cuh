// What the blocks of the scan by mma.sync have in shared memory, and where in the work they are.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device/kernel_helpers.cuh"
#include "device/shared_memory.cuh"
#include "ops/cuda_ops.h"
#include "ops/mamba3_scan/scan_chunked_math_cuda.cuh"
#include "ops/mamba3_scan/scan_mma_tokens_cuda.cuh"

namespace mamba3 {

namespace {

constexpr int kMmaThreads = 128;
constexpr int kMmaWarps = kMmaThreads / kWarpLanes;
constexpr int kWarpColumns = 16;  // of p, with one warp's part of the state
constexpr int kBlockColumns = kMmaWarps * kWarpColumns;
// At multiples of so many tokens from the start of a sequence the last token's K and x are taken
// into the state in fp32, as they are where a sequence begins: a cut there changes no bit.
constexpr int kStretchTokens = static_cast<int>(kScanGridTokensCuda);
constexpr unsigned kWeighingWarp = 0;

// Rows of shared memory have room behind, so that ldmatrix finds eight of them in different banks.
constexpr unsigned row_bytes(unsigned columns) {
  return 2 * columns + 16;
}

// kState: n, with zeros behind the layer's own. kOneRank: otherwise any.
template <int kStateIn, bool kOneRankIn>
struct MmaShape {
  static constexpr int kState = kStateIn;
  static constexpr bool kOneRank = kOneRankIn;
  // At once on a multiprocessor; a thread holds kState / 2 numbers of the state and kRows / 2 of
  // the read-outs.
  static constexpr int kBlocks = kState > 128 ? 2 : 4;
  static constexpr int kRows = kState > 64 ? 32 : 64;  // of a chunk
  static constexpr int kPairs = kState / 2;
  static constexpr int kStateSteps = kState / 16;
  static constexpr int kRowSteps = kRows / 16;
  static constexpr int kTokenGroups = kMmaThreads / kPairs;  // whose rows are made at once
  static constexpr unsigned kStateRow = row_bytes(kState);
  static constexpr unsigned kColumnRow = row_bytes(kBlockColumns);
  static constexpr unsigned kScoreRow = row_bytes(kRows);

  static __device__ __forceinline__ int rank(const MmaScanJob& job) {
    return kOneRank ? 1 : job.sizes.rank;
  }
  static __device__ __forceinline__ int rank_bits(const MmaScanJob& job) {
    return kOneRank ? 0 : job.rank_bits;
  }
};

// What a head has for each rank.
template <class S>
struct RankMemory {
  float2 b_bias[S::kPairs];
  float2 c_bias[S::kPairs];
  float2 kept_k[S::kPairs];  // of the last token before a stretch, in fp32
  float mimo_x[kBlockColumns];
  float skip_x[kBlockColumns];      // D mimo_x
  float gate_rate[kBlockColumns];   // -log2(e) mimo_z
  float gate_scale[kBlockColumns];  // mimo_z mimo_o
};

// The memory of a block; behind it stand the RankMemory of every rank.
template <class S>
struct alignas(16) MmaMemory {
  unsigned char k[S::kRows * S::kStateRow];   // [row, n]
  unsigned char q[S::kRows * S::kStateRow];   // [row, n]
  unsigned char x[S::kRows * S::kColumnRow];  // [row, p] X of every rank
  union {
    // What tokens turn, from the start of their group on; until K and Q are made.
    std::uint32_t turns[S::kRows][S::kPairs];
    unsigned char scores[S::kRows * S::kScoreRow];  // [row, row] with their weights
  };
  alignas(16) TokenTerms terms[S::kRows];
  float start_decay[S::kRows];  // [t] of the state before the chunk
  float fade[S::kRows];         // [row] the weight of an outer product at the chunk's end
  float chunk_decay;
  // Of the next chunk's tokens, and the one behind them.
  double log_decay[S::kRows];
  float2 weights[S::kRows + 1];
  std::uint32_t start_turns[S::kPairs];  // before the chunk
  // Of each group of tokens whose turns are summed at once: the sum, and 0, or NaN where a step is
  // not finite.
  std::uint32_t group_turns[kMmaWarps][S::kPairs];
  float group_broken[kMmaWarps][S::kPairs];
  float kept_x[kBlockColumns];

  __device__ __forceinline__ RankMemory<S>& rank(int r) {
    return reinterpret_cast<RankMemory<S>*>(this + 1)[r];
  }
  static __host__ __device__ int bytes(int rank) {
    return static_cast<int>(sizeof(MmaMemory)) + rank * static_cast<int>(sizeof(RankMemory<S>));
  }
};

// One block's part of the work, and one thread's in it.
struct MmaPlace {
  int begin;  // tokens
  int end;
  int head;
  int group;
  int column;  // of the head, the block's first
  int slot;
  std::int64_t sequence;
  unsigned warp;
  unsigned lane;

  __device__ explicit MmaPlace(const MmaScanJob& job) {
    const TokenSizes& sizes = job.sizes;
    const unsigned tiles = (sizes.head_dim + kBlockColumns - 1) / kBlockColumns;
    const unsigned pair = blockIdx.x / tiles;
    column = static_cast<int>(blockIdx.x % tiles) * kBlockColumns;
    head = static_cast<int>(pair % sizes.heads);
    sequence = pair / sizes.heads;
    begin = static_cast<int>(job.cu_seqlens[sequence]);
    end = static_cast<int>(job.cu_seqlens[sequence + 1]);
    slot = job.slots[sequence];
    group = head / (sizes.heads / sizes.groups);
    warp = threadIdx.x / kWarpLanes;
    lane = threadIdx.x % kWarpLanes;
  }
  // The first of the columns of p with this warp's part of the state.
  __device__ __forceinline__ int warp_column() const {
    return column + static_cast<int>(warp) * kWarpColumns;
  }
};

// A chunk: tokens [begin, begin + tokens), some of them perhaps behind the end.
struct MmaChunk {
  int begin;
  int tokens;
  int kept;         // the token that is kept in fp32, or -1
  bool last_joins;  // the stretch goes on behind the chunk

  __device__ __forceinline__ MmaChunk(const MmaPlace& at, int begin_in, int tokens_in)
      : begin(begin_in), tokens(tokens_in) {
    const int next = begin + tokens;
    last_joins = (next - at.begin) % kStretchTokens != 0;
    kept = last_joins && next < at.end ? -1 : min(next, at.end) - begin - 1;
  }
};

// Two neighbouring columns of x or z, as they were given, and as numbers.
__device__ __forceinline__ float2 raw_pair(const float* from) {
  return make_float2(__ldg(from), __ldg(from + 1));
}
__device__ __forceinline__ std::uint32_t raw_pair(const __nv_bfloat16* from) {
  return __ldg(reinterpret_cast<const std::uint32_t*>(from));
}
__device__ __forceinline__ float2 wide_pair(float2 v) {
  return v;
}
__device__ __forceinline__ float2 wide_pair(std::uint32_t bits) {
  float2 out;
  unpack_bf16(bits, out.x, out.y);
  return out;
}
template <class T>
using RawPair = decltype(raw_pair(static_cast<const T*>(nullptr)));

// Columns of a head in x, z and y, from a column on. T: float, or bf16.
template <class T>
struct HeadColumns {
  const T* x;
  const T* z;
  T* y;
  std::int64_t stride;  // of x and z
  std::int64_t y_stride;

  __device__ __forceinline__ HeadColumns(const MmaScanJob& job, int head, int column) {
    const std::int64_t at = std::int64_t{head} * job.sizes.head_dim + column;
    if constexpr (std::is_same_v<T, float>) {
      x = job.columns.x + at;
      z = job.columns.z + at;
      stride = job.columns.row_stride;
    } else {
      x = job.x + at;
      z = job.z + at;
      stride = job.zx_stride;
    }
    y = static_cast<T*>(job.y) + at;
    y_stride = job.y_stride;
  }
};

__device__ __forceinline__ float2 float_pair(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}

// The place among the canonical n of number `at` of a row, where pairs stand side by side.
__device__ __forceinline__ int place_of(const TokenSizes& sizes, int at) {
  return sizes.mimo ? at / 2 + at % 2 * (sizes.state / 2) : at;
}
// Zeros everywhere, then what a head has.
template <class S>
__device__ void load_head(const MmaScanJob& job, const MmaPlace& at, MmaMemory<S>& m) {
  const TokenSizes& sizes = job.sizes;
  const int thread = static_cast<int>(threadIdx.x);
  auto* memory = reinterpret_cast<uint4*>(&m);
  const int pieces = MmaMemory<S>::bytes(sizes.rank) / static_cast<int>(sizeof(uint4));
  for (int i = thread; i < pieces; i += kMmaThreads) memory[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  const std::int64_t pair = at.sequence * sizes.heads + at.head;
  for (int i = thread; i < sizes.state / 2; i += kMmaThreads) {
    if (i < sizes.angles) m.start_turns[i] = job.starts.turns[pair * sizes.angles + i];
    for (int r = 0; r < sizes.rank; ++r) {
      const std::int64_t row = (std::int64_t{at.head} * sizes.rank + r) * sizes.state;
      const std::int64_t k_row = (at.sequence * sizes.rank + r) * sizes.heads + at.head;
      m.rank(r).b_bias[i] = canonical_pair(sizes, job.params.in_b_bias + row, i);
      m.rank(r).c_bias[i] = canonical_pair(sizes, job.params.out_c_bias + row, i);
      m.rank(r).kept_k[i] = canonical_pair(sizes, job.starts.k + k_row * sizes.state, i);
    }
  }
  const float* v = job.states.v + at.slot * job.states.v_stride + at.head * sizes.head_dim;
  const HeadGate gate = head_gate(sizes, job.params, at.head);
  for (int p = thread; p < min(kBlockColumns, sizes.head_dim - at.column); p += kMmaThreads) {
    const int column = at.column + p;
    m.kept_x[p] = v[column];
    for (int r = 0; r < sizes.rank; ++r) {
      RankMemory<S>& rank = m.rank(r);
      const int from = r * sizes.head_dim + column;
      const float z = sizes.mimo ? gate.mimo_z[from] : 1.0f;
      rank.mimo_x[p] = own_x(gate, r, column, 1.0f);
      rank.skip_x[p] = gate.skip * rank.mimo_x[p];
      rank.gate_rate[p] = kGateRate * z;
      rank.gate_scale[p] = sizes.mimo ? z * gate.mimo_o[from] : 1.0f;
    }
  }
}

// The block's part of what a sequence leaves beside the state: turns and K once for each head.
template <class S>
__device__ void store_end(const MmaScanJob& job, const MmaPlace& at, MmaMemory<S>& m) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3States& states = job.states;
  const int thread = static_cast<int>(threadIdx.x);
  float* v = states.v + at.slot * states.v_stride + at.head * sizes.head_dim;
  for (int p = thread; p < kBlockColumns; p += kMmaThreads) {
    if (at.column + p < sizes.head_dim) v[at.column + p] = m.kept_x[p];
  }
  if (at.column > 0) return;
  std::uint32_t* turns =
      states.turns + at.slot * states.turns_stride + std::int64_t{at.head} * sizes.angles;
  for (int i = thread; i < sizes.state / 2; i += kMmaThreads) {
    if (i < sizes.angles) turns[i] = m.start_turns[i];
    for (int r = 0; r < sizes.rank; ++r) {
      float* k = states.k + at.slot * states.k_stride +
                 (std::int64_t{r} * sizes.heads + at.head) * sizes.state;
      k[place_of(sizes, 2 * i)] = m.rank(r).kept_k[i].x;
      k[place_of(sizes, 2 * i + 1)] = m.rank(r).kept_k[i].y;
    }
  }
}

}  // namespace
}  // namespace mamba3
