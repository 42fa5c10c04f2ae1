// A chunk of tokens in the shared memory of one block of the chunked scan, and how it gets there.
// A block is one warpgroup. A chunk has 64 rows: one for each rank of each of its tokens.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "device/wgmma.cuh"
#include "ops/cuda_ops.h"
#include "ops/mamba3_scan/scan_chunked_tokens_cuda.cuh"

namespace mamba3 {
namespace {

// Two warpgroups: both prepare a chunk, then one makes its outputs and the other the next state.
constexpr int kGroupThreads = 128;
constexpr int kChunkThreads = 2 * kGroupThreads;
constexpr int kChunkWarps = kChunkThreads / kWarpLanes;
constexpr int kChunkRows = 64;
constexpr int kChunkHeadDim = 64;
constexpr int kTileBytes = kChunkRows * kTileRowBytes;
constexpr int kPieceBytes = 16;
constexpr int kRowPieces = kTileRowBytes / kPieceBytes;
// At multiples of so many tokens from the start of a call the last token's K and x are taken into
// the state in fp32, as they are where a call begins: a cut there changes no bit.
constexpr int kGridTokens = static_cast<int>(kScanGridTokensCuda);

// kTurnedIn: of a lane's pairs, those that may be rotated.
template <int kStateIn, int kRankIn, int kTurnedIn>
struct ChunkShape {
  static constexpr int kState = kStateIn;
  static constexpr int kRank = kRankIn;
  static constexpr int kTurned = kTurnedIn;
  static constexpr int kTokens = kChunkRows / kRank;
  static constexpr int kWarpTokens = kTokens / kChunkWarps;  // prepared by one warp
  static constexpr int kWarpRows = kChunkRows / kChunkWarps;
  static constexpr int kTiles = kState / kTileColumns;        // side by side in a row of K
  static constexpr int kLanePairs = kState / 2 / kWarpLanes;  // of a row, rotated by one lane

  // An accumulator gives a thread rows i and i + 8 of its warp's 16: two ranks of one token.
  static __device__ constexpr int row(int token, int rank) {
    if (kRank == 1) return token;
    if (kRank == 2) return token / 8 * 16 + rank * 8 + token % 8;
    return token / 4 * 16 + rank / 2 * 8 + token % 4 * 2 + rank % 2;
  }
};

// What a chunk's products need to know of a token. Decays are base-2 logarithms from the chunk's
// start on, in two floats: what a strong decay leaves of the small ones after it is in the second.
struct TokenTerms {
  float decay_high;
  float decay_low;
  float fill;  // s: the weight of its outer product when a later token reads it
  float now;   // gamma: when it reads its own
};

template <class S>
struct alignas(1024) ChunkMemory {
  unsigned char q[S::kTiles][kTileBytes];  // [row, n]
  unsigned char k[S::kTiles][kTileBytes];  // [row, n]
  // [p, n] the state before the chunk; when it was read, the gates, 32 of each output thread.
  unsigned char h[2][kTileBytes];
  unsigned char x[S::kTokens * kTileRowBytes];                    // [t, p]
  unsigned char z[S::kTokens * kTileRowBytes];                    // [t, p] and then y
  unsigned char own_x[S::kRank == 1 ? kPieceBytes : kTileBytes];  // [row, p] X of every rank
  __half2 in_b[kChunkRows][S::kState / 2];
  __half2 out_c[kChunkRows][S::kState / 2];
  float2 in_b_bias[S::kRank][S::kState / 2];
  float2 out_c_bias[S::kRank][S::kState / 2];
  float2 in_b_norm[S::kState / 2];
  float2 out_c_norm[S::kState / 2];
  float2 k_before[S::kRank][S::kState / 2];  // of the last token before this stretch of the grid
  float x_before[kChunkHeadDim];
  float mimo_x[S::kRank][kChunkHeadDim];
  float skip_x[S::kRank][kChunkHeadDim];  // D mimo_x
  float mimo_z[S::kRank][kChunkHeadDim];
  float mimo_o[S::kRank][kChunkHeadDim];
  float out_norm[kChunkHeadDim];
  double dt[S::kTokens];
  double log_decay[S::kTokens];
  float2 weights[S::kTokens + 1];  // gamma and (1 - lam) dt; the latter of the next token too
  alignas(16) double half_tanh[S::kTokens][S::kTurned * kWarpLanes];
  std::uint32_t turns[kChunkWarps][S::kTurned * kWarpLanes];  // moved by each warp's tokens
  alignas(16) TokenTerms terms[S::kTokens];
  float start_decay[S::kTokens];  // of the state before the chunk
  float fade[kChunkRows];         // [row] the weight of an outer product at the chunk's end
  float chunk_decay;
};

// One block's part of the work, and one thread's in it.
struct ChunkPlace {
  std::int64_t sequence;
  std::int64_t slot;
  int begin;  // tokens
  int end;
  int head;
  int group;
  int warp;
  int lane;

  __device__ explicit ChunkPlace(const ChunkedScanJob& job) {
    head = static_cast<int>(blockIdx.x % job.sizes.heads);
    sequence = job.order[blockIdx.x / job.sizes.heads];
    slot = job.slots[sequence];
    begin = static_cast<int>(job.cu_seqlens[sequence]);
    end = static_cast<int>(job.cu_seqlens[sequence + 1]);
    group = head / (job.sizes.heads / job.sizes.groups);
    warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  }
  __device__ float* ssm(const ChunkedScanJob& job) const {
    return job.states.ssm + slot * job.states.ssm_stride +
           std::int64_t{head} * job.sizes.state * kChunkHeadDim;
  }
  __device__ float* v(const ChunkedScanJob& job) const {
    return job.states.v + slot * job.states.v_stride + head * kChunkHeadDim;
  }
  __device__ float* k(const ChunkedScanJob& job, int r) const {
    return job.states.k + slot * job.states.k_stride +
           (std::int64_t{r} * job.sizes.heads + head) * job.sizes.state;
  }
  __device__ std::uint32_t* turns(const ChunkedScanJob& job) const {
    return job.states.turns + slot * job.states.turns_stride +
           std::int64_t{head} * job.sizes.angles;
  }
};

// A head's parameters and the end of what came before, pairs side by side.
template <class S>
__device__ void load_head(const ChunkedScanJob& job, const ChunkPlace& at, ChunkMemory<S>& m) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Params& params = job.params;
  const int thread = static_cast<int>(threadIdx.x);
  const auto pair = [&](const float* row, int i) {
    return make_float2(row[canonical_place(sizes, 2 * i)], row[canonical_place(sizes, 2 * i + 1)]);
  };
  for (int i = thread; i < S::kState / 2; i += kChunkThreads) {
    m.in_b_norm[i] = pair(params.in_b_norm, i);
    m.out_c_norm[i] = pair(params.out_c_norm, i);
    for (int r = 0; r < S::kRank; ++r) {
      const std::int64_t row = (std::int64_t{at.head} * S::kRank + r) * S::kState;
      m.in_b_bias[r][i] = pair(params.in_b_bias + row, i);
      m.out_c_bias[r][i] = pair(params.out_c_bias + row, i);
      m.k_before[r][i] = pair(at.k(job, r), i);
    }
  }
  for (int p = thread; p < kChunkHeadDim; p += kChunkThreads) {
    m.x_before[p] = at.v(job)[p];
    if (sizes.out_norm) m.out_norm[p] = params.out_norm[at.head * kChunkHeadDim + p];
    for (int r = 0; r < S::kRank; ++r) {
      const int from = (at.head * S::kRank + r) * kChunkHeadDim + p;
      m.mimo_x[r][p] = S::kRank == 1 ? 1.0f : params.mimo_x[from];
      m.skip_x[r][p] = params.skip[at.head] * m.mimo_x[r][p];
      if constexpr (S::kRank > 1) {
        m.mimo_z[r][p] = params.mimo_z[from];
        m.mimo_o[r][p] = params.mimo_o[from];
      }
    }
  }
}

// By the second warpgroup.
template <class S>
__device__ void store_end(const ChunkedScanJob& job, const ChunkPlace& at,
                          const ChunkMemory<S>& m) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread - kGroupThreads; i < S::kState / 2; i += kGroupThreads) {
    for (int r = 0; r < S::kRank; ++r) {
      float* to = at.k(job, r);
      to[canonical_place(job.sizes, 2 * i)] = m.k_before[r][i].x;
      to[canonical_place(job.sizes, 2 * i + 1)] = m.k_before[r][i].y;
    }
  }
  for (int p = thread - kGroupThreads; p < kChunkHeadDim; p += kGroupThreads) {
    at.v(job)[p] = m.x_before[p];
  }
}

// So many bytes from `from`, or zeros.
template <int kBytes>
__device__ __forceinline__ void request_piece(void* to, const void* from, bool is) {
  __pipeline_memcpy_async(to, from, kBytes, is ? 0 : kBytes);
}

// A warp asks for what its own tokens bring into the chunk from `begin` on besides x and z; those
// at or behind the end bring zeros. kWhole: there are none of those.
template <class S, bool kWhole>
__device__ __forceinline__ void request_rows(const ChunkedScanJob& job, const ChunkPlace& at,
                                             ChunkMemory<S>& m, int begin) {
  constexpr int kTokenBytes = S::kRank * S::kState * static_cast<int>(sizeof(__half));
  constexpr int kStep = kWarpLanes * kPieceBytes;
  const int first_in_chunk = at.warp * S::kWarpTokens;
  const int first = begin + first_in_chunk;
  const int valid = kWhole ? S::kWarpTokens : at.end - first;
  const std::int64_t from = (at.group * job.tokens + first) * kTokenBytes + at.lane * kPieceBytes;
  const auto* in_b = reinterpret_cast<const unsigned char*>(job.in_b) + from;
  const auto* out_c = reinterpret_cast<const unsigned char*>(job.out_c) + from;
  const int to = first_in_chunk * kTokenBytes + at.lane * kPieceBytes;
  auto* b_to = reinterpret_cast<unsigned char*>(m.in_b) + to;
  auto* c_to = reinterpret_cast<unsigned char*>(m.out_c) + to;
#pragma unroll
  for (int i = 0; i < S::kWarpTokens * kTokenBytes / kStep; ++i) {
    const bool is = kWhole || (i * kStep + at.lane * kPieceBytes) / kTokenBytes < valid;
    request_piece<kPieceBytes>(b_to + i * kStep, is ? in_b + i * kStep : job.nothing, is);
    request_piece<kPieceBytes>(c_to + i * kStep, is ? out_c + i * kStep : job.nothing, is);
  }
  constexpr int kAngles = S::kTurned * kWarpLanes;
  constexpr int kAnglePieces = kAngles * static_cast<int>(sizeof(double)) / kPieceBytes;
  const int token = at.lane / kAnglePieces;
  const int angle = at.lane % kAnglePieces * 2;
  const double* angles = job.half_tanh + std::int64_t{first + token} * (S::kState / 2) + angle;
  constexpr int kTokensAtOnce = kWarpLanes / kAnglePieces;
#pragma unroll
  for (int i = 0; i < S::kWarpTokens; i += kTokensAtOnce) {
    if (S::kWarpTokens < kTokensAtOnce && token >= S::kWarpTokens) break;
    const bool is = kWhole || i + token < valid;
    request_piece<kPieceBytes>(
        &m.half_tanh[first_in_chunk + i + token][angle],
        is ? static_cast<const void*>(angles + i * (S::kState / 2)) : job.nothing, is);
  }
  if (at.lane >= S::kWarpTokens) return;
  const bool is = kWhole || at.lane < valid;
  request_piece<sizeof(double)>(
      &m.dt[first_in_chunk + at.lane],
      is ? static_cast<const void*>(job.dt + at.head * job.tokens + first + at.lane) : job.nothing,
      is);
}

// By one warp: the numbers of all tokens.
template <class S>
__device__ __forceinline__ void request_terms(const ChunkedScanJob& job, const ChunkPlace& at,
                                              ChunkMemory<S>& m, int begin) {
  const std::int64_t from = at.head * job.tokens + begin;
#pragma unroll
  for (int i = at.lane; i <= S::kTokens; i += kWarpLanes) {
    const bool is = begin + i < at.end;
    request_piece<sizeof(float2)>(
        &m.weights[i], is ? static_cast<const void*>(job.weights + from + i) : job.nothing, is);
    if (i == S::kTokens) break;
    request_piece<sizeof(double)>(
        &m.log_decay[i], is ? static_cast<const void*>(job.log_decay + from + i) : job.nothing, is);
  }
}

// `kCount` tokens of x or z from the chunk's token `first` on.
template <int kCount>
__device__ __forceinline__ void request_columns(const ChunkedScanJob& job, const ChunkPlace& at,
                                                const __nv_bfloat16* columns, unsigned char* to,
                                                int begin, int first) {
  const int piece = at.lane % kRowPieces;
  const __nv_bfloat16* from = columns + at.head * kChunkHeadDim + piece * 8;
#pragma unroll
  for (int i = 0; i < (kCount * kRowPieces + kWarpLanes - 1) / kWarpLanes; ++i) {
    const int token = first + i * (kWarpLanes / kRowPieces) + at.lane / kRowPieces;
    if (token >= first + kCount) break;
    const bool is = begin + token < at.end;
    request_piece<kPieceBytes>(
        to + swizzled(token, piece * 8),
        is ? static_cast<const void*>(from + (begin + token) * job.zx_stride) : job.nothing, is);
  }
}

__device__ __forceinline__ float fast_exp2(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

// Running sums of the decays in double, and every weight that follows from them, by one warp.
// `last_joins`: the next token's share of the last one's weight is not left to the next stretch.
template <class S>
__device__ __forceinline__ void weigh_chunk(int lane, bool last_joins, ChunkMemory<S>& m) {
  constexpr double kLog2e = 1.4426950408889634;
  constexpr int kOwn = S::kTokens > kWarpLanes ? S::kTokens / kWarpLanes : 1;
  const bool has_tokens = lane * kOwn < S::kTokens;
  double sums[kOwn];
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (has_tokens) sum += m.log_decay[lane * kOwn + i];
    sums[i] = sum;
  }
#pragma unroll
  for (int step = 1; step < kWarpLanes; step *= 2) {
    const double below = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += below;
  }
  const double all = __shfl_sync(0xffffffffu, sum, kWarpLanes - 1);
  double before = __shfl_up_sync(0xffffffffu, sum, 1);
  if (lane == 0) before = 0;
  if (lane == 0) m.chunk_decay = fast_exp2(static_cast<float>(all * kLog2e));
  if (!has_tokens) return;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int token = lane * kOwn + i;
    const double decay = (before + sums[i]) * kLog2e;
    const auto high = static_cast<float>(decay);
    const float now = m.weights[token].x;
    const bool joins = token + 1 < S::kTokens || last_joins;
    const float fill = now + (joins ? m.weights[token + 1].y : 0.0f);
    m.terms[token] = {high, static_cast<float>(decay - high), fill, now};
    m.start_decay[token] = fast_exp2(high);
    const float fade = fast_exp2(static_cast<float>(all * kLog2e - decay)) * fill;
#pragma unroll
    for (int r = 0; r < S::kRank; ++r) m.fade[S::row(token, r)] = fade;
  }
}

// turns_moved of steps below 2^19 turns: added to a number whose last place is 2^-32, a step leaves
// its fraction, rounded, in the lower word of the sum.
__device__ __forceinline__ std::uint32_t small_turns_moved(double half_tanh, double dt,
                                                           bool& small) {
  const double step = __dmul_rn(half_tanh, dt);
  small = (__double2hiint(step) & 0x7fffffff) < 0x41200000;
  return static_cast<std::uint32_t>(__double2loint(__dadd_rn(step, 0x1.8p20)));
}

// Phases of this lane's pairs after each of the warp's tokens, counted from the warp's first.
template <class S>
struct Phases {
  std::uint32_t turns[S::kWarpTokens][S::kTurned];
  std::uint32_t broken;  // bit t * kTurned + j: a step that is not finite

  __device__ __forceinline__ void sum(const ChunkPlace& at, ChunkMemory<S>& m) {
    const int first = at.warp * S::kWarpTokens;
    broken = 0;
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      const int angle = j * kWarpLanes + at.lane;
      std::uint32_t sum = 0;
      bool all_small = true;
#pragma unroll
      for (int t = 0; t < S::kWarpTokens; ++t) {
        bool small;
        sum += small_turns_moved(m.half_tanh[first + t][angle], m.dt[first + t], small);
        turns[t][j] = sum;
        all_small = all_small && small;
      }
      if (!all_small) sum = sum_large(m, first, j, angle);
      m.turns[at.warp][angle] = sum;
    }
  }

 private:
  __device__ __forceinline__ std::uint32_t sum_large(const ChunkMemory<S>& m, int first, int j,
                                                     int angle) {
    std::uint32_t sum = 0;
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      bool finite = true;
      sum += turns_moved(m.half_tanh[first + t][angle], m.dt[first + t], finite);
      turns[t][j] = sum;
      if (!finite) broken |= 1u << (t * S::kTurned + j);
    }
    return sum;
  }
};

// What was moved by the warps before this one, and by all.
template <class S>
__device__ __forceinline__ void sum_turns(const ChunkMemory<S>& m, const ChunkPlace& at,
                                          const std::uint32_t (&start)[S::kTurned],
                                          std::uint32_t (&own)[S::kTurned],
                                          std::uint32_t (&all)[S::kTurned]) {
#pragma unroll
  for (int j = 0; j < S::kTurned; ++j) {
    own[j] = all[j] = start[j];
#pragma unroll
    for (int warp = 0; warp < kChunkWarps; ++warp) {
      const std::uint32_t moved = m.turns[warp][j * kWarpLanes + at.lane];
      if (warp < at.warp) own[j] += moved;
      all[j] += moved;
    }
  }
}

__device__ __forceinline__ float2 biased(__half2 normed, float2 weight, float2 bias) {
  const float2 v = __half22float2(normed);
  return make_float2(fmaf(v.x, weight.x, bias.x), fmaf(v.y, weight.y, bias.y));
}

__device__ __forceinline__ float2 turned(float2 v, float2 cos_sin) {
  return make_float2(fmaf(-v.y, cos_sin.y, v.x * cos_sin.x), fmaf(v.y, cos_sin.x, v.x * cos_sin.y));
}

// To about 2^-21, far within what rounding to bf16 takes.
__device__ __forceinline__ float2 fast_cos_sin(std::uint32_t turns) {
  constexpr float kRadians = 1.4629180792671596e-9f;  // 2 pi / 2^32
  const float angle = static_cast<float>(static_cast<std::int32_t>(turns)) * kRadians;
  return make_float2(__cosf(angle), __sinf(angle));
}

// One pair of numbers of `kCount` of a warp's tokens from `t0` on, at one place in the rows of K
// and Q. All loads come first: the compiler cannot know that no store is in their way.
template <class S, int kCount, bool kRotates>
__device__ __forceinline__ void rotate_pairs(const Phases<S>& phases, const ChunkPlace& at, int j,
                                             std::uint32_t start, int t0, int kept,
                                             ChunkMemory<S>& m) {
  const int pair = j * kWarpLanes + at.lane;
  const int first = at.warp * S::kWarpTokens + t0;
  __half2 b[kCount * S::kRank];
  __half2 c[kCount * S::kRank];
#pragma unroll
  for (int i = 0; i < kCount * S::kRank; ++i) {
    b[i] = m.in_b[first * S::kRank + i][pair];
    c[i] = m.out_c[first * S::kRank + i][pair];
  }
  float2 cos_sin[kCount];
  if constexpr (kRotates) {
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      cos_sin[t] = fast_cos_sin(start + phases.turns[t0 + t][j]);
      if ((phases.broken >> ((t0 + t) * S::kTurned + j) & 1u) != 0) {
        cos_sin[t] = make_float2(nanf(""), nanf(""));
      }
    }
  }
  const float2 b_norm = m.in_b_norm[pair];
  const float2 c_norm = m.out_c_norm[pair];
#pragma unroll
  for (int r = 0; r < S::kRank; ++r) {
    const float2 b_bias = m.in_b_bias[r][pair];
    const float2 c_bias = m.out_c_bias[r][pair];
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      float2 k = biased(b[t * S::kRank + r], b_norm, b_bias);
      float2 q = biased(c[t * S::kRank + r], c_norm, c_bias);
      if constexpr (kRotates) {
        k = turned(k, cos_sin[t]);
        q = turned(q, cos_sin[t]);
      }
      const int to = swizzled(S::row(first + t, r), 2 * at.lane);
      *reinterpret_cast<std::uint32_t*>(m.k[j] + to) = pack_bf16(k.x, k.y);
      *reinterpret_cast<std::uint32_t*>(m.q[j] + to) = pack_bf16(q.x, q.y);
      if (first + t == kept) m.k_before[r][pair] = k;
    }
  }
}

// Rows K and Q of the warp's tokens. `kept`: the token of the chunk whose K is to be kept in fp32.
template <class S>
__device__ __forceinline__ void rotate_chunk(const Phases<S>& phases, const ChunkPlace& at,
                                             const std::uint32_t (&start)[S::kTurned], int kept,
                                             ChunkMemory<S>& m) {
  constexpr int kCount = S::kRank == 1 ? 4 : S::kRank == 2 ? 2 : 1;  // four rows at a time
#pragma unroll
  for (int j = 0; j < S::kLanePairs; ++j) {
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; t += kCount) {
      if (j < S::kTurned) {
        rotate_pairs<S, kCount, true>(phases, at, j, start[j < S::kTurned ? j : 0], t, kept, m);
      } else {
        rotate_pairs<S, kCount, false>(phases, at, j, 0, t, kept, m);
      }
    }
  }
}

__device__ __forceinline__ void unpack_bf16(std::uint32_t bits, float& a, float& b) {
  a = __uint_as_float(bits << 16);
  b = __uint_as_float(bits & 0xffff0000u);
}

// Two neighbours of a column that the products read as bf16, of token `token` of the chunk: as the
// op was given them.
template <bool kWide>
__device__ __forceinline__ float2 column_pair(const ChunkedScanJob& job, const ChunkPlace& at,
                                              const float* wide, const unsigned char* tile,
                                              int begin, int token, int p) {
  float2 out = make_float2(0, 0);
  if constexpr (!kWide) {
    unpack_bf16(*reinterpret_cast<const std::uint32_t*>(tile + swizzled(token, p)), out.x, out.y);
  } else if (begin + token < at.end) {
    const float* from =
        wide + (begin + token) * job.columns.row_stride + at.head * kChunkHeadDim + p;
    out = make_float2(from[0], from[1]);
  }
  return out;
}

// Keeps x of the chunk's token `kept`, and makes the X of every rank of the warp's tokens.
template <class S>
__device__ __forceinline__ void spread_x(const ChunkedScanJob& job, const ChunkPlace& at, int begin,
                                         int kept, ChunkMemory<S>& m) {
  const int first = at.warp * S::kWarpTokens;
  if (kept >= first && kept < first + S::kWarpTokens) {
    const int p = 2 * at.lane;
    const float2 x = job.y_bf16 ? column_pair<false>(job, at, nullptr, m.x, begin, kept, p)
                                : column_pair<true>(job, at, job.columns.x, m.x, begin, kept, p);
    m.x_before[p] = x.x;
    m.x_before[p + 1] = x.y;
  }
  if constexpr (S::kRank > 1) {
#pragma unroll
    for (int i = 0; i < S::kWarpRows * kRowPieces / kWarpLanes; ++i) {
      const int index = i * kWarpLanes + at.lane;
      const int column = index % kRowPieces * 8;
      const int r = index / kRowPieces % S::kRank;
      const int token = first + index / kRowPieces / S::kRank;
      const uint4 piece = *reinterpret_cast<const uint4*>(m.x + swizzled(token, column));
      const std::uint32_t from[4] = {piece.x, piece.y, piece.z, piece.w};
      std::uint32_t own[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float a;
        float b;
        unpack_bf16(from[w], a, b);
        const float2 weight = *reinterpret_cast<const float2*>(&m.mimo_x[r][column + 2 * w]);
        own[w] = pack_bf16(a * weight.x, b * weight.y);
      }
      *reinterpret_cast<uint4*>(m.own_x + swizzled(S::row(token, r), column)) =
          make_uint4(own[0], own[1], own[2], own[3]);
    }
  }
}

}  // namespace
}  // namespace mamba3
