// What a chunk of the scan by mma.sync brings: its phases, rows of K and Q, and X of every rank,
// which behind the end of the sequence is zero.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/mamba3_scan/scan_mma_memory_cuda.cuh"

namespace mamba3 {
namespace {

// Asks for B and C of a chunk, as they are before bias and rotation, where K and Q will be. Behind
// the end stand zeros: what K and Q become there counts for nothing.
template <class S>
__device__ __forceinline__ void request_rows(const MmaScanJob& job, const MmaPlace& at,
                                             const MmaChunk& chunk, MmaMemory<S>& m) {
  constexpr int kPieceColumns = 8;
  constexpr int kRowPieces = S::kState / kPieceColumns;
  constexpr int kRowsAtOnce = kMmaThreads / kRowPieces;
  const int n = job.sizes.state, rank = S::rank(job), bits = S::rank_bits(job);
  const int column = static_cast<int>(threadIdx.x) % kRowPieces * kPieceColumns;
  if (column >= n) return;
  const std::int64_t from = (std::int64_t{at.group} * job.tokens + chunk.begin) * rank * n + column;
  const __half* in_b = job.in_b + from;
  const __half* out_c = job.out_c + from;
#pragma unroll
  for (int i = 0; i < S::kRows; i += kRowsAtOnce) {
    const int row = i + static_cast<int>(threadIdx.x) / kRowPieces;
    const int token = row >> bits, r = row - (token << bits);
    if (r >= rank) continue;
    const bool is = chunk.begin + token < at.end;
    const int offset = is ? (token * rank + r) * n : 0;
    const int to = row * static_cast<int>(S::kStateRow) + 2 * column;
    const std::size_t zeros = is ? 0 : sizeof(uint4);
    __pipeline_memcpy_async(m.k + to, in_b + offset, sizeof(uint4), zeros);
    __pipeline_memcpy_async(m.q + to, out_c + offset, sizeof(uint4), zeros);
  }
  __pipeline_commit();
}

// The phases of a chunk: sums of what its tokens turn, by threads that each have an angle and a
// group of the tokens.
template <class S>
struct Turner {
  int angle;
  int group;
  int groups;
  int tokens;  // of a group

  __device__ __forceinline__ Turner(const MmaScanJob& job, const MmaChunk& chunk) {
    const int bits = job.sizes.angles <= 32 ? 5 : job.sizes.angles <= 64 ? 6 : 7;
    angle = static_cast<int>(threadIdx.x) & ((1 << bits) - 1);
    group = static_cast<int>(threadIdx.x) >> bits;
    groups = kMmaThreads >> bits;
    tokens = chunk.tokens / groups;
  }

  __device__ __forceinline__ void sum(const MmaScanJob& job, const MmaPlace& at,
                                      const MmaChunk& chunk, MmaMemory<S>& m) const {
    if (angle >= job.sizes.angles) return;
    const int first = group * tokens;
    const int there = min(tokens, at.end - (chunk.begin + first));
    const std::int64_t angles = job.sizes.angles;
    const double* half_tanh = job.half_tanh + (chunk.begin + first) * angles + angle;
    const double* turning = job.turning + at.head * job.tokens + chunk.begin + first;
    std::uint32_t* to = &m.turns[first][angle];
    float broken = 0;
    std::uint32_t sum = 0;
#pragma unroll 8
    for (int t = 0; t < there; ++t, half_tanh += angles, ++turning, to += S::kPairs) {
      const double half = __ldg(half_tanh), duration = __ldg(turning);
      bool finite;
      *to = sum += turns_moved(half, duration, finite);
      if (!finite) broken = nanf("");
    }
    m.group_turns[group][angle] = sum;
    m.group_broken[group][angle] = broken;
  }

  // The turns before group `number`, when all sums are there.
  __device__ __forceinline__ std::uint32_t before(const MmaMemory<S>& m, int pair,
                                                  int number) const {
    std::uint32_t sum = m.start_turns[pair];
    for (int g = 0; g < number; ++g) sum += m.group_turns[g][pair];
    return sum;
  }

  // The phases before the next chunk, when nobody needs those before this one.
  __device__ __forceinline__ void advance(const MmaScanJob& job, MmaMemory<S>& m) const {
    if (group == 0 && angle < job.sizes.angles) m.start_turns[angle] = before(m, angle, groups);
  }
};

// Rows of K and Q, by threads that each have a pair of their columns and a group of the chunk's
// tokens.
template <class S>
struct RowMaker {
  const MmaScanJob& job;
  MmaMemory<S>& m;
  int pair;
  int group;
  float2 b_norm;
  float2 c_norm;

  __device__ __forceinline__ RowMaker(const MmaScanJob& job_in, MmaMemory<S>& memory)
      : job(job_in), m(memory) {
    pair = static_cast<int>(threadIdx.x) % S::kPairs;
    group = static_cast<int>(threadIdx.x) / S::kPairs;
    b_norm = c_norm = make_float2(0, 0);
    if (!inside()) return;
    b_norm = canonical_pair(job.sizes, job.params.in_b_norm, pair);
    c_norm = canonical_pair(job.sizes, job.params.out_c_norm, pair);
  }

  // When what request_rows asked for is there, and the turns are.
  __device__ __forceinline__ void make(const MmaChunk& chunk, const Turner<S>& turner) const {
    if (!inside()) return;
    const int tokens = chunk.tokens / S::kTokenGroups;
    const int first = group * tokens;
    if (pair >= job.sizes.angles) return make_rows<false>(chunk, first, tokens, 0, 0);
    const int step = min(tokens, turner.tokens);
    for (int t = first; t < first + tokens; t += step) {
      const int number = t / turner.tokens;
      make_rows<true>(chunk, t, step, turner.before(m, pair, number), m.group_broken[number][pair]);
    }
  }

 private:
  __device__ __forceinline__ bool inside() const { return pair < job.sizes.state / 2; }

  template <bool kTurns>
  __device__ __forceinline__ void make_rows(const MmaChunk& chunk, int first, int tokens,
                                            std::uint32_t before, float broken) const {
    const int rank = S::rank(job);
    const int token_bytes = static_cast<int>(S::kStateRow) << S::rank_bits(job);
    const std::uint32_t* turned_by = &m.turns[first][pair];
    int place = first * token_bytes + 4 * pair;
    float2 b_bias = m.rank(0).b_bias[pair], c_bias = m.rank(0).c_bias[pair];
#pragma unroll 4
    for (int t = first; t < first + tokens; ++t, turned_by += S::kPairs, place += token_bytes) {
      float2 cos_sin = make_float2(1, 0);
      if (kTurns) cos_sin = fast_cos_sin(before + *turned_by, broken);
      for (int r = 0; r < rank; ++r) {
        if (!S::kOneRank) {
          b_bias = m.rank(r).b_bias[pair];
          c_bias = m.rank(r).c_bias[pair];
        }
        auto& k_place = *reinterpret_cast<__half2*>(m.k + place + r * S::kStateRow);
        auto& q_place = *reinterpret_cast<__half2*>(m.q + place + r * S::kStateRow);
        float2 k = biased(k_place, b_norm, b_bias);
        float2 q = biased(q_place, c_norm, c_bias);
        if (kTurns) {
          k = turned(k, cos_sin);
          q = turned(q, cos_sin);
        }
        if (__builtin_expect(t == chunk.kept, 0)) m.rank(r).kept_k[pair] = k;
        reinterpret_cast<std::uint32_t&>(k_place) = pack_bf16(k.x, k.y);
        reinterpret_cast<std::uint32_t&>(q_place) = pack_bf16(q.x, q.y);
      }
    }
  }
};

// Four neighbouring columns of x, as they were given, and as numbers.
__device__ __forceinline__ float4 load_four(const float* from) {
  return make_float4(__ldg(from), __ldg(from + 1), __ldg(from + 2), __ldg(from + 3));
}
__device__ __forceinline__ uint2 load_four(const __nv_bfloat16* from) {
  return __ldg(reinterpret_cast<const uint2*>(from));
}
__device__ __forceinline__ float4 wide_four(float4 v) {
  return v;
}
__device__ __forceinline__ float4 wide_four(uint2 bits) {
  float4 out;
  unpack_bf16(bits.x, out.x, out.y);
  unpack_bf16(bits.y, out.z, out.w);
  return out;
}

// X of every rank: half a warp has a token, a lane four columns. T: what x is given in.
template <class T, class S>
struct ColumnMaker {
  using Four = decltype(load_four(static_cast<const T*>(nullptr)));
  static constexpr int kLanes = kBlockColumns / 4;
  static constexpr int kTokensAtOnce = kMmaThreads / kLanes;
  static constexpr int kOwn = S::kRows / kTokensAtOnce;  // of a lane, with one rank
  Four x[kOwn];

  // Long before put().
  __device__ __forceinline__ void load(const MmaScanJob& job, const MmaPlace& at,
                                       const MmaChunk& chunk) {
    const HeadColumns<T> columns(job, at.head, at.column + own_column());
    const bool inside = at.column + own_column() < job.sizes.head_dim;
    const T* from = columns.x + (chunk.begin + first()) * columns.stride;
#pragma unroll
    for (int i = 0; i < kOwn; ++i, from += kTokensAtOnce * columns.stride) {
      const int token = first() + i * kTokensAtOnce;
      x[i] = Four{};
      if (inside && token < chunk.tokens && chunk.begin + token < at.end) x[i] = load_four(from);
    }
  }

  __device__ __forceinline__ void put(const MmaScanJob& job, const MmaPlace& at,
                                      const MmaChunk& chunk, MmaMemory<S>& m) const {
    if (at.column + own_column() >= job.sizes.head_dim) return;
    for (int r = 0; r < S::rank(job); ++r) {
      const float4 weight = *reinterpret_cast<const float4*>(&m.rank(r).mimo_x[own_column()]);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int token = first() + i * kTokensAtOnce;
        if (token >= chunk.tokens) break;
        const int row = (token << S::rank_bits(job)) + r;
        const float4 v = wide_four(x[i]);
        *reinterpret_cast<uint2*>(m.x + row * static_cast<int>(S::kColumnRow) + 2 * own_column()) =
            make_uint2(pack_bf16(v.x * weight.x, v.y * weight.y),
                       pack_bf16(v.z * weight.z, v.w * weight.w));
      }
    }
  }

 private:
  static __device__ __forceinline__ int own_column() {
    return static_cast<int>(threadIdx.x) % kLanes * 4;
  }
  static __device__ __forceinline__ int first() {
    return static_cast<int>(threadIdx.x) / kLanes;
  }
};

// x of the token that is kept, when all have read what was kept before.
template <class T, class S>
__device__ __forceinline__ void keep_x(const MmaScanJob& job, const MmaPlace& at,
                                       const MmaChunk& chunk, MmaMemory<S>& m) {
  const int own = static_cast<int>(threadIdx.x);
  if (chunk.kept < 0 || own >= kBlockColumns || at.column + own >= job.sizes.head_dim) return;
  const HeadColumns<T> columns(job, at.head, at.column + own);
  m.kept_x[own] = widened(columns.x[(chunk.begin + chunk.kept) * columns.stride]);
}

}  // namespace
}  // namespace mamba3
