// Rows of K and Q for the chunked scan, by two warpgroups: they normalise, bias and rotate those of
// a chunk, while others multiply those of the chunk before. X of every rank and the gates are made
// here too. Each warp has tokens of its own, whose rows come from memory a chunk ahead.
#pragma once

#include <cstddef>
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

// Rows of B and C of a warp's tokens. Behind the sequence's end stand its last token's rows, whose
// weights are zero.
template <class S>
struct RawRows {
  LanePairs<S> b[S::kWarpRows];
  LanePairs<S> c[S::kWarpRows];
  const LanePairs<S>* from_b;  // the lane's share of the next to be loaded

  // `first`: the warp's first token.
  __device__ __forceinline__ RawRows(const ChunkedScanJob& job, const ChunkPlace& at, int first)
      : from_b(reinterpret_cast<const LanePairs<S>*>(job.in_b) +
               (at.group * job.tokens + first) * S::kRank * kWarpLanes + at.lane) {}

  // `left`: tokens before the end, from the warp's first on.
  __device__ __forceinline__ void load(const ChunkedScanJob& job, int left) {
    if (__builtin_expect(left >= S::kWarpTokens, 1)) {
      load_tokens<true>(job, left);
    } else {
      load_tokens<false>(job, left);
    }
    from_b += S::kTokens * S::kRank * kWarpLanes;
  }

 private:
  template <bool kWhole>
  __device__ __forceinline__ void load_tokens(const ChunkedScanJob& job, int left) {
    const auto* const from_c = reinterpret_cast<const LanePairs<S>*>(
        reinterpret_cast<const __half*>(from_b) + (job.out_c - job.in_b));
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      const int token = kWhole ? t : min(t, left - 1);
#pragma unroll
      for (int r = 0; r < S::kRank; ++r) {
        b[t * S::kRank + r] = __ldg(from_b + (token * S::kRank + r) * kWarpLanes);
        if (!S::kOutputs) continue;
        c[t * S::kRank + r] = __ldg(from_c + (token * S::kRank + r) * kWarpLanes);
      }
    }
  }
};

// A pair as the products take it. `j`: which of the lane's.
template <class S>
__device__ __forceinline__ float2 rotated(__half2 raw, float2 norm, float2 bias, int j,
                                          const float2 (&cos_sin)[S::kTurned]) {
  const float2 v = biased(raw, norm, bias);
  return j < S::kTurned ? turned(v, cos_sin[j % S::kTurned]) : v;
}

// Where a lane of a rotating warp finds and puts what is its own, in bytes. What it has of its
// warp's other rows is known from its share of the first.
template <class S>
struct LanePlaces {
  std::uint32_t row;   // of K and Q, from the first tile of either
  std::uint32_t gate;  // from a stage's gates
  std::uint32_t z;     // the same
  std::uint32_t turn;  // from a chunk's phases
  unsigned lane;

  __device__ __forceinline__ explicit LanePlaces(const ChunkPlace& at) : lane(held(at.lane)) {
    const unsigned token = at.warp * S::kWarpTokens;
    const unsigned column = 2 * S::kLanePairs * at.lane;
    row =
        held(column / kTileColumns * kNextTile + swizzled(S::row(token, 0), column % kTileColumns));
    gate = held(gate_place(S::row(token, 0), 2 * at.lane));
    z = held(S::row(token, 0) * kGateRowBytes + 4 * at.lane);
    turn = held(ChunkTurns<S>::place(token, at.lane));
  }
};

__device__ __forceinline__ uint2 packed_pairs(const float2 (&v)[2]) {
  return make_uint2(pack_bf16(v[0].x, v[0].y), pack_bf16(v[1].x, v[1].y));
}
__device__ __forceinline__ std::uint32_t packed_pairs(const float2 (&v)[1]) {
  return pack_bf16(v[0].x, v[0].y);
}

// One row of K or Q, number `kRow` of the warp's.
template <class S, unsigned kRow, int kOffset>
__device__ __forceinline__ void put_row(LanePairs<S> raw, const float2* norm, const float2* bias,
                                        const float2 (&cos_sin)[S::kTurned], std::uint32_t place) {
  float2 out[S::kLanePairs];
#pragma unroll
  for (int j = 0; j < S::kLanePairs; ++j) {
    out[j] = rotated<S>(raw_pair(raw, j), norm[j], bias[j], j, cos_sin);
  }
  store_shared<kRow * kTileRowBytes + kOffset>(at_piece(place, kRow % 8), packed_pairs(out));
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

// Of a warp's tokens, for each of a lane's pairs that may be rotated.
template <class S>
using TokenRotations = float2[S::kWarpTokens][S::kTurned];

// All is loaded before anything is made of it: memory answers late.
template <class S>
__device__ __forceinline__ void load_rotations(const ChunkTurns<S>& turns,
                                               const LanePlaces<S>& places,
                                               TokenRotations<S>& out) {
  static_assert(S::kTokens / kTurnQuarters % S::kWarpTokens == 0);
  const std::uint32_t from = shared_address(&turns) + places.turn;
  std::uint32_t angles[S::kWarpTokens][S::kTurned];
  float broken[S::kTurned];
  for_each_number<S::kTurned>([&](auto number) {
    constexpr int kNumber = decltype(number)::value;
    broken[kNumber] = turns.broken[kNumber * kWarpLanes + places.lane];
    for_each_number<S::kWarpTokens>([&](auto token) {
      constexpr int kToken = decltype(token)::value;
      angles[kToken][kNumber] =
          load_shared<ChunkTurns<S>::place(kToken, kNumber * kWarpLanes)>(from);
    });
  });
#pragma unroll
  for (int t = 0; t < S::kWarpTokens; ++t) {
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) out[t][j] = fast_cos_sin(angles[t][j], broken[j]);
  }
}

// Rows K and Q of the warp's tokens.
template <class S>
__device__ __forceinline__ void rotate_rows(const RawRows<S>& raw,
                                            const TokenRotations<S>& rotations,
                                            const PairParameters<S>& parameters, std::uint32_t row,
                                            ChunkStage<S>& stage) {
  constexpr int kQ = offsetof(ChunkStage<S>, tiles[0].q) - offsetof(ChunkStage<S>, tiles[0].k);
  const std::uint32_t place = shared_address(stage.tiles[0].k) + row;
  for_each_number<S::kWarpTokens>([&](auto token) {
    constexpr int kToken = decltype(token)::value;
    for_each_number<S::kRank>([&](auto rank) {
      constexpr int kRank = decltype(rank)::value;
      constexpr int kFrom = kToken * S::kRank + kRank;
      constexpr unsigned kRow = S::row(kToken, kRank);
      put_row<S, kRow, 0>(raw.b[kFrom], parameters.b_norm, parameters.b_bias[kRank],
                          rotations[kToken], place);
      if constexpr (S::kOutputs) {
        put_row<S, kRow, kQ>(raw.c[kFrom], parameters.c_norm, parameters.c_bias[kRank],
                             rotations[kToken], place);
      }
    });
  });
}

// K of the chunk's token `kept`, in fp32, by the warp that has rotated it. `from`: the lane's share
// of its rows.
template <class S>
__device__ __forceinline__ void keep_k(const LanePairs<S>* from, const ChunkTurns<S>& turns,
                                       const PairParameters<S>& parameters, unsigned lane, int kept,
                                       ChunkStage<S>& stage) {
  float2 cos_sin[S::kTurned];
#pragma unroll
  for (int j = 0; j < S::kTurned; ++j) {
    const unsigned angle = j * kWarpLanes + lane;
    cos_sin[j] = fast_cos_sin(turns.of(kept, angle), turns.broken[angle]);
  }
#pragma unroll
  for (int r = 0; r < S::kRank; ++r) {
    const LanePairs<S> raw = from[r * kWarpLanes];
#pragma unroll
    for (int j = 0; j < S::kLanePairs; ++j) {
      stage.kept.k[r][lane * S::kLanePairs + j] =
          rotated<S>(raw_pair(raw, j), parameters.b_norm[j], parameters.b_bias[r][j], j, cos_sin);
    }
  }
}

// Makes X of every rank of a warp's tokens, and the same with the tokens' weights at the chunk's
// end. A lane has the same rank and columns of several tokens.
template <class S>
struct RankSpreader {
  static constexpr int kPieces = S::kWarpRows * kRowPieces / kWarpLanes;
  static constexpr int kTokensAtOnce = S::kWarpTokens / kPieces;
  float weights[8];
  // Bytes, of the first token's: in x, in X, and in the fades.
  std::uint32_t from;
  std::uint32_t to;
  std::uint32_t fade_from;
  uint4 x[kPieces];
  float fade[kPieces];

  __device__ __forceinline__ RankSpreader(const ChunkMemory<S>& m, const ChunkPlace& at) {
    const unsigned column = at.lane % kRowPieces * 8;
    const unsigned rank = at.lane / kRowPieces % S::kRank;
    const unsigned token = at.warp * S::kWarpTokens + at.lane / kRowPieces / S::kRank;
#pragma unroll
    for (int i = 0; i < 8; ++i) weights[i] = m.mimo_x[rank][column + i];
    from = held(swizzled(token, column));
    to = held(swizzled(S::row(token, rank), column));
    fade_from = held(token * sizeof(float));
  }

  __device__ __forceinline__ void load(const ChunkWeights<S>& of_chunk,
                                       const ChunkStage<S>& stage) {
    const std::uint32_t place = shared_address(stage.x) + from;
    const std::uint32_t fades = shared_address(of_chunk.fade) + fade_from;
    for_each_number<kPieces>([&](auto number) {
      constexpr int kNumber = decltype(number)::value;
      constexpr int kToken = kNumber * kTokensAtOnce;
      x[kNumber] = load_shared_piece<kToken * kTileRowBytes>(at_piece(place, kToken));
      fade[kNumber] = __uint_as_float(load_shared<kToken * sizeof(float)>(fades));
    });
  }

  __device__ __forceinline__ void spread(ChunkStage<S>& stage) const {
    constexpr int kFaded = offsetof(ChunkStage<S>, faded_x) - offsetof(ChunkStage<S>, own_x);
    const std::uint32_t place = shared_address(stage.own_x) + to;
    for_each_number<kPieces>([&](auto number) {
      constexpr int kNumber = decltype(number)::value;
      constexpr unsigned kRow = S::row(kNumber * kTokensAtOnce, 0);
      constexpr int kOffset = kRow * kTileRowBytes;
      const std::uint32_t pairs[4] = {x[kNumber].x, x[kNumber].y, x[kNumber].z, x[kNumber].w};
      std::uint32_t own[4], faded[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float a;
        float b;
        unpack_bf16(pairs[i], a, b);
        a *= weights[2 * i];
        b *= weights[2 * i + 1];
        own[i] = pack_bf16(a, b);
        faded[i] = pack_bf16(a * fade[kNumber], b * fade[kNumber]);
      }
      const std::uint32_t row = at_piece(place, kRow % 8);
      if constexpr (S::kOutputs) {
        store_shared_piece<kOffset>(row, make_uint4(own[0], own[1], own[2], own[3]));
      }
      store_shared_piece<kOffset + kFaded>(row, make_uint4(faded[0], faded[1], faded[2], faded[3]));
    });
  }
};

// Two warpgroups' way through the chunks of a sequence.
template <class S>
struct ChunkRotator {
  const ChunkedScanJob& job;
  ChunkMemory<S>& m;
  ChunkPlace at;
  int first;  // the warp's first token, from the chunk's start
  const PairParameters<S> parameters;
  LanePlaces<S> places;
  RankSpreader<S> ranks;
  ColumnPieces<S> columns;
  RawRows<S> rows;

  __device__ __forceinline__ ChunkRotator(const ChunkedScanJob& job_in, const ChunkPlace& place,
                                          ChunkMemory<S>& memory)
      : job(job_in),
        m(memory),
        at(among_rotating(place)),
        first(static_cast<int>(at.warp * S::kWarpTokens)),
        parameters(job, at),
        places(at),
        ranks(m, at),
        columns(job, at),
        rows(job, at, at.begin + first) {}

  static __device__ __forceinline__ ChunkPlace among_rotating(ChunkPlace place) {
    place.warp -= kRotatingThread / kWarpLanes;
    return place;
  }

  // X and the gates of the warp's tokens, whose x and z are there.
  __device__ __forceinline__ void make_x_and_gates(int begin, const ChunkWeights<S>& weights,
                                                   ChunkStage<S>& stage) {
    if constexpr (S::kRank > 1) ranks.load(weights, stage);
    if constexpr (S::kOutputs) {
      const std::uint32_t place = shared_address(stage.gates);
      Gates<S> gates(m, place + places.z, places.lane);
      if (__builtin_expect(!job.y_bf16, 0)) gates.load_wide(job, at, begin + first);
      __syncwarp();
      if constexpr (S::kRank > 1) ranks.spread(stage);
      gates.make(m, place + places.gate, places.lane);
    } else if constexpr (S::kRank > 1) {
      ranks.spread(stage);
    }
  }

  // Where a stretch of the grid or the sequence ends with the chunk.
  __device__ __forceinline__ void keep_last(int begin, const ChunkTurns<S>& turns,
                                            ChunkStage<S>& stage) {
    const int kept = min(begin + S::kTokens, at.end) - 1 - begin;
    const int own = kept - first;
    if (own < 0 || own >= S::kWarpTokens) return;
    const auto* from = rows.from_b + (own - S::kTokens) * S::kRank * kWarpLanes;
    keep_k(from, turns, parameters, places.lane, kept, stage);
  }

  __device__ __forceinline__ void run() {
    StageCursor cursor;
    rows.load(job, at.end - at.begin - first);
    int stretch_end = at.begin;
    for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
      const int s = cursor.stage;
      ChunkStage<S>& stage = m.stages[s];
      barrier_wait(&m.turned[s], cursor.parity);
      TokenRotations<S> rotations;
      load_rotations(m.turns[s], places, rotations);
      barrier_wait(&m.emptied[s], cursor.parity ^ 1);
      columns.bring(job, begin, at.end, stage);
      rotate_rows(rows, rotations, parameters, places.row, stage);
      const int next = begin + S::kTokens;
      if (begin == stretch_end) stretch_end += kGridTokens;
      if (__builtin_expect(next >= min(stretch_end, at.end), 0)) {
        keep_last(begin, m.turns[s], stage);
      }
      if (next < at.end) rows.load(job, at.end - next - first);
      __pipeline_wait_prior(0);
      __syncwarp();
      make_x_and_gates(begin, m.weights[cursor.weights()], stage);
      fence_async_proxy();
      arrive_warp(&m.filled[s], places.lane);
      cursor.next();
    }
  }
};

}  // namespace
}  // namespace mamba3
