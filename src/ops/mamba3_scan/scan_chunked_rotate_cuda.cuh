// Rows of K and Q for the chunked scan, by two warpgroups: they normalise, bias and rotate those of
// a chunk, while others multiply those of the chunk before. X of every rank and the gates are made
// here too. Each warp has tokens of its own, whose rows come from memory a chunk ahead.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device/kernel_helpers.cuh"
#include "ops/mamba3_scan/scan_chunked_gates_cuda.cuh"

namespace mamba3 {
namespace {

// Two numbers of each of a lane's pairs in a row, side by side in memory.
template <class S>
using LanePairs = std::conditional_t<S::kLanePairs == 2, uint2, std::uint32_t>;

__device__ __forceinline__ __half2 raw_pair(uint2 pairs, int j) {
  const std::uint32_t bits = j == 0 ? pairs.x : pairs.y;
  return *reinterpret_cast<const __half2*>(&bits);
}
__device__ __forceinline__ __half2 raw_pair(std::uint32_t pairs, int) {
  return *reinterpret_cast<const __half2*>(&pairs);
}

// What a warp's tokens bring into a chunk. Behind the sequence's end stand its last token's rows,
// whose weights are zero. kWhole: the end is not among the warp's tokens.
template <class S>
struct RawRows {
  LanePairs<S> b[S::kWarpRows];
  LanePairs<S> c[S::kWarpRows];

  // `first`: the warp's first token.
  __device__ __forceinline__ void load(const ChunkedScanJob& job, const ChunkPlace& at, int first) {
    if (__builtin_expect(first + S::kWarpTokens <= at.end, 1)) {
      load_tokens<true>(job, at, first);
    } else {
      load_tokens<false>(job, at, first);
    }
  }
  static __device__ __forceinline__ const LanePairs<S>* rows(const __half* from, unsigned lane) {
    return reinterpret_cast<const LanePairs<S>*>(from) + lane;
  }

 private:
  template <bool kWhole>
  __device__ __forceinline__ void load_tokens(const ChunkedScanJob& job, const ChunkPlace& at,
                                              int first) {
    const std::int64_t start = (at.group * job.tokens + (kWhole ? first : 0)) * S::kRank;
    const auto* in_b = rows(job.in_b, at.lane) + start * kWarpLanes;
    const auto* out_c = rows(job.out_c, at.lane) + start * kWarpLanes;
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      const int token = kWhole ? t : min(first + t, at.end - 1);
#pragma unroll
      for (int r = 0; r < S::kRank; ++r) {
        b[t * S::kRank + r] = __ldg(in_b + (token * S::kRank + r) * kWarpLanes);
        if (!S::kOutputs) continue;
        c[t * S::kRank + r] = __ldg(out_c + (token * S::kRank + r) * kWarpLanes);
      }
    }
  }
};

__device__ __forceinline__ float2 biased(__half2 normed, float2 weight, float2 bias) {
  const float2 v = __half22float2(normed);
  return make_float2(fmaf(v.x, weight.x, bias.x), fmaf(v.y, weight.y, bias.y));
}

__device__ __forceinline__ float2 turned(float2 v, float2 cos_sin) {
  return make_float2(fmaf(-v.y, cos_sin.y, v.x * cos_sin.x), fmaf(v.y, cos_sin.x, v.x * cos_sin.y));
}

// To about 2^-21, far within what rounding to bf16 takes; NaN if `broken` is.
__device__ __forceinline__ float2 fast_cos_sin(std::uint32_t turns, float broken) {
  constexpr float kRadians = 1.4629180792671596e-9f;  // 2 pi / 2^32
  const float angle = fmaf(static_cast<float>(static_cast<std::int32_t>(turns)), kRadians, broken);
  return make_float2(__cosf(angle), __sinf(angle));
}

template <class S>
__device__ __forceinline__ float2 cos_sin_of(const ChunkTurns<S>& turns, unsigned token,
                                             unsigned angle) {
  return fast_cos_sin(turns.of(token, angle), turns.broken[angle]);
}

// A pair as the products take it. `j`: which of the lane's.
template <class S>
__device__ __forceinline__ float2 rotated(__half2 raw, float2 norm, float2 bias, int j,
                                          const float2 (&cos_sin)[S::kTurned]) {
  const float2 v = biased(raw, norm, bias);
  return j < S::kTurned ? turned(v, cos_sin[j % S::kTurned]) : v;
}

// Where a lane's pairs of the warp's first row stand in a tile, and in which.
template <class S>
__device__ __forceinline__ std::uint32_t lane_place(const ChunkPlace& at) {
  const unsigned column = 2 * S::kLanePairs * at.lane;
  return swizzled(S::row(at.warp * S::kWarpTokens, 0), column % kTileColumns);
}
template <class S>
__device__ __forceinline__ unsigned lane_tile(const ChunkPlace& at) {
  return 2 * S::kLanePairs * at.lane / kTileColumns;
}

__device__ __forceinline__ uint2 packed_pairs(const float2 (&v)[2]) {
  return make_uint2(pack_bf16(v[0].x, v[0].y), pack_bf16(v[1].x, v[1].y));
}
__device__ __forceinline__ std::uint32_t packed_pairs(const float2 (&v)[1]) {
  return pack_bf16(v[0].x, v[0].y);
}

// One row of K or Q, number `kRow` of the warp's.
template <class S, unsigned kRow>
__device__ __forceinline__ void put_row(LanePairs<S> raw, const float2* norm, const float2* bias,
                                        const float2 (&cos_sin)[S::kTurned], std::uint32_t place) {
  float2 out[S::kLanePairs];
#pragma unroll
  for (int j = 0; j < S::kLanePairs; ++j) {
    out[j] = rotated<S>(raw_pair(raw, j), norm[j], bias[j], j, cos_sin);
  }
  store_shared<kRow * kTileRowBytes>(at_piece(place, kRow % 8), packed_pairs(out));
}

// A head's parameters of a lane's pairs, which stay in its registers.
template <class S>
struct PairParameters {
  float2 b_norm[S::kLanePairs];
  float2 c_norm[S::kLanePairs];
  float2 b_bias[S::kRank][S::kLanePairs];
  float2 c_bias[S::kRank][S::kLanePairs];

  __device__ __forceinline__ PairParameters(const ChunkedScanJob& job, const ChunkPlace& at) {
    const auto pair = [&](const float* row, int j) {
      return canonical_pair(job.sizes, row, static_cast<int>(at.lane) * S::kLanePairs + j);
    };
#pragma unroll
    for (int j = 0; j < S::kLanePairs; ++j) {
      b_norm[j] = pair(job.params.in_b_norm, j);
      c_norm[j] = pair(job.params.out_c_norm, j);
#pragma unroll
      for (int r = 0; r < S::kRank; ++r) {
        const std::int64_t row = (std::int64_t{at.head} * S::kRank + r) * S::kState;
        b_bias[r][j] = pair(job.params.in_b_bias + row, j);
        c_bias[r][j] = pair(job.params.out_c_bias + row, j);
      }
    }
  }
};

// Rows K and Q of the warp's tokens.
template <class S>
__device__ __forceinline__ void rotate_rows(const RawRows<S>& raw, const ChunkTurns<S>& turns,
                                            const PairParameters<S>& parameters,
                                            const ChunkPlace& at, ChunkStage<S>& stage) {
  const std::uint32_t place = lane_place<S>(at);
  const std::uint32_t k_place = shared_address(stage.tiles[lane_tile<S>(at)].k) + place;
  const std::uint32_t q_place = shared_address(stage.q[lane_tile<S>(at)]) + place;
  for_each_number<S::kWarpTokens>([&](auto token) {
    constexpr int kToken = decltype(token)::value;
    float2 cos_sin[S::kTurned];
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      cos_sin[j] = cos_sin_of(turns, at.warp * S::kWarpTokens + kToken, j * kWarpLanes + at.lane);
    }
    for_each_number<S::kRank>([&](auto rank) {
      constexpr int kRank = decltype(rank)::value;
      constexpr int kFrom = kToken * S::kRank + kRank;
      constexpr unsigned kRow = S::row(kToken, kRank);
      put_row<S, kRow>(raw.b[kFrom], parameters.b_norm, parameters.b_bias[kRank], cos_sin, k_place);
      if constexpr (S::kOutputs) {
        put_row<S, kRow>(raw.c[kFrom], parameters.c_norm, parameters.c_bias[kRank], cos_sin,
                         q_place);
      }
    });
  });
}

// K of the chunk's token `kept`, in fp32, by one warp.
template <class S>
__device__ __forceinline__ void keep_k(const ChunkedScanJob& job, const ChunkTurns<S>& turns,
                                       const PairParameters<S>& parameters, const ChunkPlace& at,
                                       int begin, int kept, ChunkStage<S>& stage) {
  float2 cos_sin[S::kTurned];
#pragma unroll
  for (int j = 0; j < S::kTurned; ++j) {
    cos_sin[j] = cos_sin_of(turns, kept, j * kWarpLanes + at.lane);
  }
  const std::int64_t token = at.group * job.tokens + begin + kept;
#pragma unroll
  for (int r = 0; r < S::kRank; ++r) {
    const LanePairs<S> raw =
        RawRows<S>::rows(job.in_b, at.lane)[(token * S::kRank + r) * kWarpLanes];
#pragma unroll
    for (int j = 0; j < S::kLanePairs; ++j) {
      stage.kept.k[r][at.lane * S::kLanePairs + j] =
          rotated<S>(raw_pair(raw, j), parameters.b_norm[j], parameters.b_bias[r][j], j, cos_sin);
    }
  }
}

// Makes X of every rank of a warp's tokens. A lane has the same rank and columns of several tokens.
template <class S>
struct RankSpreader {
  static constexpr int kPieces = S::kWarpRows * kRowPieces / kWarpLanes;
  static constexpr int kTokensAtOnce = S::kWarpTokens / kPieces;
  unsigned column;
  unsigned rank;
  unsigned token;  // the first, among the warp's
  float weights[8];

  __device__ __forceinline__ RankSpreader(const ChunkMemory<S>& m, unsigned lane)
      : column(lane % kRowPieces * 8),
        rank(lane / kRowPieces % S::kRank),
        token(lane / kRowPieces / S::kRank) {
#pragma unroll
    for (int i = 0; i < 8; ++i) weights[i] = m.mimo_x[rank][column + i];
  }

  __device__ __forceinline__ void spread(const ChunkPlace& at, const WarpColumns<S>& columns,
                                         ChunkStage<S>& stage) const {
    const std::uint32_t place = shared_address(stage.own_x) +
                                swizzled(S::row(at.warp * S::kWarpTokens + token, rank), column);
    for_each_number<kPieces>([&](auto number) {
      constexpr int kToken = decltype(number)::value * kTokensAtOnce;
      constexpr unsigned kRow = S::row(kToken, 0);
      const uint4 from = *reinterpret_cast<const uint4*>(&columns.x()[token + kToken][2 * column]);
      const uint4 own = {weighted(from.x, 0), weighted(from.y, 2), weighted(from.z, 4),
                         weighted(from.w, 6)};
      store_shared_piece<kRow * kTileRowBytes>(at_piece(place, kRow % 8), own);
    });
  }

 private:
  __device__ __forceinline__ std::uint32_t weighted(std::uint32_t pair, int i) const {
    float a;
    float b;
    unpack_bf16(pair, a, b);
    return pack_bf16(a * weights[i], b * weights[i + 1]);
  }
};

// Two warpgroups' way through the chunks of a sequence.
template <class S>
__device__ __forceinline__ void rotate_chunks(const ChunkedScanJob& job, ChunkPlace at,
                                              ChunkMemory<S>& m) {
  at.warp -= kRotatingThread / kWarpLanes;
  const auto first_in_chunk = static_cast<int>(at.warp * S::kWarpTokens);
  const PairParameters<S> parameters(job, at);
  const RankSpreader<S> ranks(m, at.lane);
  WarpColumns<S>& columns = m.columns[at.warp];
  RawRows<S> rows;
  rows.load(job, at, at.begin + first_in_chunk);
  request_warp_columns(job, at, at.begin + first_in_chunk, columns);
  StageCursor cursor;
  for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
    forget_lane(at);
    const int s = cursor.stage;
    ChunkStage<S>& stage = m.stages[s];
    const int first = begin + first_in_chunk;
    const bool goes_on = begin + S::kTokens < at.end;
    barrier_wait(&m.turned[s], cursor.parity);
    barrier_wait(&m.emptied[s], cursor.parity ^ 1);
    rotate_rows(rows, m.turns[s], parameters, at, stage);
    const int kept = kept_token<S>(at, begin);
    if (__builtin_expect(kept >= 0 && kept / S::kWarpTokens == static_cast<int>(at.warp), 0)) {
      keep_k(job, m.turns[s], parameters, at, begin, kept, stage);
    }
    if (goes_on) rows.load(job, at, first + S::kTokens);
    __pipeline_wait_prior(0);
    __syncwarp();
    if constexpr (S::kRank > 1) ranks.spread(at, columns, stage);
    if constexpr (S::kOutputs) make_gates(job, at, first, m, stage);
    fence_async_proxy();
    arrive_warp(&m.filled[s], at.lane);
    if (goes_on) request_warp_columns(job, at, first + S::kTokens, columns);
    cursor.next();
  }
}

}  // namespace
}  // namespace mamba3
