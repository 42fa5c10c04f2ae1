// Rows of K and Q for the chunked scan, by two warpgroups: they normalise, bias and rotate those of
// a chunk, while others multiply those of the chunk before. The gates and what is skipped to y are
// made here too. Each warp has tokens of its own, whose rows come from memory by
// bulk copies, a chunk ahead.
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

// The rows of B and C of a warp's tokens, which are requested a chunk ahead and then taken one by
// one. Behind the sequence's end stand its last token's rows, whose weights are zero.

// By bulk copies to shared memory.
template <class S>
struct RowsInMemory {
  static constexpr int kTokenBytes = S::kRank * S::kRowBytes;
  SharedRows<S>& rows;
  Barrier* barrier;
  std::uint32_t own;  // the address of the lane's share of the first
  std::uint32_t parity = 0;
  const __half* from_b;  // of the warp's first token of the next chunk
  const __half* from_c;

  __device__ __forceinline__ RowsInMemory(const ChunkedScanJob& job, ChunkMemory<S>& m,
                                          const ChunkPlace& at)
      : rows(m.rows[at.warp]),
        barrier(&m.brought[at.warp]),
        own(held(shared_address(rows.b) + sizeof(LanePairs<S>) * at.lane)) {
    const std::int64_t token =
        at.group * job.tokens + at.begin + static_cast<int>(at.warp * S::kWarpTokens);
    from_b = job.in_b + token * (S::kRank * S::kState);
    from_c = job.out_c + token * (S::kRank * S::kState);
  }

  // `token`: the warp's first. All lanes have taken what was there.
  __device__ __forceinline__ void request(const ChunkedScanJob&, const ChunkPlace& at, int token) {
    __syncwarp();
    if (elect_lane()) copy_rows(at.end - 1 - token);
    from_b += S::kTokens * S::kRank * S::kState;
    from_c += S::kTokens * S::kRank * S::kState;
  }

  __device__ __forceinline__ void wait() {
    barrier_wait(barrier, parity);
    parity ^= 1;
  }

  template <int kRow>
  __device__ __forceinline__ LanePairs<S> b() const {
    return load<kRow * S::kRowBytes>();
  }
  template <int kRow>
  __device__ __forceinline__ LanePairs<S> c() const {
    return load<offsetof(SharedRows<S>, c) + kRow * S::kRowBytes>();
  }

  // The lane's share of the first row of B of token number `own` of the warp's.
  __device__ __forceinline__ const LanePairs<S>* token_b(const ChunkedScanJob&,
                                                         const ChunkPlace& at, int /*token*/,
                                                         int own) const {
    return reinterpret_cast<const LanePairs<S>*>(rows.b + own * kTokenBytes) + at.lane;
  }

 private:
  // `last`: the sequence's last token, from the warp's first.
  __device__ __forceinline__ void copy_rows(int last) {
    barrier_arrive_expecting(barrier, (S::kOutputs ? 2 : 1) * S::kWarpTokens * kTokenBytes);
    if (__builtin_expect(last >= S::kWarpTokens - 1, 1)) {
      return copy<S::kWarpTokens * kTokenBytes>(0, 0);
    }
#pragma unroll 1
    for (int i = 0; i < S::kWarpTokens; ++i) copy<kTokenBytes>(min(i, last), i);
  }

  // From a token's rows on, to the place of token number `to` of the warp's.
  template <int kBytes>
  __device__ __forceinline__ void copy(int token, int to) {
    const std::int64_t from = std::int64_t{token} * (S::kRank * S::kState);
    bulk_copy(rows.b + to * kTokenBytes, from_b + from, kBytes, barrier);
    if (S::kOutputs) bulk_copy(rows.c + to * kTokenBytes, from_c + from, kBytes, barrier);
  }

  template <int kOffset>
  __device__ __forceinline__ LanePairs<S> load() const {
    if constexpr (S::kLanePairs == 1) {
      return load_shared<kOffset>(own);
    } else {
      const float2 bits = load_shared_pair<kOffset>(own);
      return make_uint2(__float_as_uint(bits.x), __float_as_uint(bits.y));
    }
  }
};

// To registers.
template <class S>
struct RowsInRegisters {
  LanePairs<S> in_b[S::kWarpRows];
  LanePairs<S> out_c[S::kWarpRows];

  __device__ __forceinline__ RowsInRegisters(const ChunkedScanJob&, ChunkMemory<S>&,
                                             const ChunkPlace&) {}

  __device__ __forceinline__ void request(const ChunkedScanJob& job, const ChunkPlace& at,
                                          int token) {
    const std::int64_t first =
        (at.group * job.tokens + token) * S::kRank * kWarpLanes + static_cast<int>(at.lane);
    const auto* const from_b = reinterpret_cast<const LanePairs<S>*>(job.in_b) + first;
    const auto* const from_c = reinterpret_cast<const LanePairs<S>*>(job.out_c) + first;
#pragma unroll
    for (int i = 0; i < S::kWarpRows; ++i) {
      const int row = min(i / S::kRank, at.end - 1 - token) * S::kRank + i % S::kRank;
      in_b[i] = __ldg(from_b + row * kWarpLanes);
      if (S::kOutputs) out_c[i] = __ldg(from_c + row * kWarpLanes);
    }
  }

  __device__ __forceinline__ void wait() {}

  template <int kRow>
  __device__ __forceinline__ LanePairs<S> b() const {
    return in_b[kRow];
  }
  template <int kRow>
  __device__ __forceinline__ LanePairs<S> c() const {
    return out_c[kRow];
  }

  // From memory: registers have no numbers. `token`: the warp's first.
  __device__ __forceinline__ const LanePairs<S>* token_b(const ChunkedScanJob& job,
                                                         const ChunkPlace& at, int token,
                                                         int own) const {
    return reinterpret_cast<const LanePairs<S>*>(job.in_b) +
           (at.group * job.tokens + token + own) * S::kRank * kWarpLanes + at.lane;
  }
};

template <class S>
using RawRows = std::conditional_t<S::kRowsShared, RowsInMemory<S>, RowsInRegisters<S>>;

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
  std::uint32_t x;     // from a stage's x
  std::uint32_t skip;  // the same
  std::uint32_t turn;  // from a chunk's phases
  unsigned lane;

  __device__ __forceinline__ explicit LanePlaces(const ChunkPlace& at) : lane(held(at.lane)) {
    const unsigned token = at.warp * S::kWarpTokens;
    const unsigned column = 2 * S::kLanePairs * at.lane;
    row =
        held(column / kTileColumns * kNextTile + swizzled(S::row(token, 0), column % kTileColumns));
    gate = held(gate_place(S::row(token, 0), 2 * at.lane));
    z = held(S::row(token, 0) * kGateRowBytes + 4 * at.lane);
    x = held(place_in_x<S>(token, 2 * at.lane));
    skip = held(skip_place<S>(token, 2 * at.lane));
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
  static_assert(ChunkTurns<S>::kTokens % S::kWarpTokens == 0);
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

// Rows K and Q of the warp's tokens. Calls `halfway` there.
template <class S, class F>
__device__ __forceinline__ void rotate_rows(const RawRows<S>& raw,
                                            const TokenRotations<S>& rotations,
                                            const PairParameters<S>& parameters, std::uint32_t row,
                                            ChunkStage<S>& stage, const F& halfway) {
  constexpr int kQ = offsetof(ChunkStage<S>, tiles[0].q) - offsetof(ChunkStage<S>, tiles[0].k);
  constexpr int kAtOnce = 4;  // memory answers late
  const std::uint32_t place = shared_address(stage.tiles[0].k) + row;
  for_each_number<S::kWarpRows / kAtOnce>([&](auto number) {
    constexpr int kFirst = decltype(number)::value * kAtOnce;
    if constexpr (kFirst == S::kWarpRows / 2) halfway();
    LanePairs<S> b[kAtOnce];
    [[maybe_unused]] LanePairs<S> c[kAtOnce];  // not where only states are wanted
    for_each_number<kAtOnce>([&](auto i) {
      constexpr int kI = decltype(i)::value;
      b[kI] = raw.template b<kFirst + kI>();
      if constexpr (S::kOutputs) c[kI] = raw.template c<kFirst + kI>();
    });
    for_each_number<kAtOnce>([&](auto i) {
      constexpr int kI = decltype(i)::value;
      constexpr int kToken = (kFirst + kI) / S::kRank;
      constexpr int kRank = (kFirst + kI) % S::kRank;
      constexpr unsigned kRow = S::row(kToken, kRank);
      put_row<S, kRow, 0>(b[kI], parameters.b_norm, parameters.b_bias[kRank], rotations[kToken],
                          place);
      if constexpr (S::kOutputs) {
        put_row<S, kRow, kQ>(c[kI], parameters.c_norm, parameters.c_bias[kRank], rotations[kToken],
                             place);
      }
    });
  });
}

// K of the chunk's token `kept`, in fp32, by the warp that has rotated it. `from`: the lane's share
// of its rows.
template <class S>
__device__ __forceinline__ void keep_k(const LanePairs<S>* from, const ChunkTurns<S>& turns,
                                       const PairParameters<S>& parameters, unsigned lane, int kept,
                                       TokenBefore<S>& to) {
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
      to.k[r][lane * S::kLanePairs + j] =
          rotated<S>(raw_pair(raw, j), parameters.b_norm[j], parameters.b_bias[r][j], j, cos_sin);
    }
  }
}

// x of the chunk's token `kept`, in fp32, as the op was given it, by a warp that has all of its
// row.
template <class S>
__device__ __forceinline__ void keep_x(const ChunkedScanJob& job, const ChunkPlace& at, int begin,
                                       const ChunkStage<S>& stage, int kept, TokenBefore<S>& to) {
  const unsigned column = 2 * at.lane;
  float2 x;
  if (job.y_bf16) {
    unpack_bf16(load_shared(shared_address(stage.x) + place_in_x<S>(kept, column)), x.x, x.y);
  } else {
    const float* const from =
        job.columns.x + (begin + kept) * job.columns.row_stride + at.head * kChunkHeadDim + column;
    x = make_float2(from[0], from[1]);
  }
  *reinterpret_cast<float2*>(&to.x[column]) = x;
}

// Two warpgroups' way through the chunks of a sequence.
template <class S>
struct ChunkRotator {
  const ChunkedScanJob& job;
  ChunkMemory<S>& m;
  ChunkPlace at;
  int first;  // the warp's first token, from the chunk's start
  const PairParameters<S> parameters;
  LanePlaces<S> places;
  const GateWeights<S> gate_weights;
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
        gate_weights(job, at),
        columns(job, at),
        rows(job, m, at) {}

  static __device__ __forceinline__ ChunkPlace among_rotating(ChunkPlace place) {
    place.warp = uniform(place.warp - kRotatingThread / kWarpLanes);
    return place;
  }

  // x and z of the warp's tokens.
  __device__ __forceinline__ void bring_columns(int begin, const StageCursor& cursor) {
    if constexpr (S::kOutputs) barrier_wait(&m.written[cursor.stage], cursor.parity ^ 1);
    columns.bring(job, begin, at.end, m.stages[cursor.stage]);
  }

  // The gates and the skips of the warp's tokens, whose x and z are there.
  __device__ __forceinline__ void make_gates(int begin, ChunkStage<S>& stage) {
    const std::uint32_t place = shared_address(stage.gates);
    const std::uint32_t x = shared_address(stage.x);
    Gates<S> gates(place + places.z, x + places.x);
    if (__builtin_expect(!job.y_bf16, 0)) gates.load_wide(job, at, begin + first);
    __syncwarp();
    float2 skips[S::kWarpTokens];
    gates.make(gate_weights, shared_address(m.skip_x) + 8 * places.lane, place + places.gate,
               skips);
    if (S::kRank > 1 && !job.sizes.out_norm) Gates<S>::put_skips(x + places.skip, skips);
  }

  // K and x of the last token, where a stretch of the grid or the sequence ends with the chunk. Its
  // rows are still there, and the whole warp waits for its columns.
  __device__ __forceinline__ void keep_last(int begin, const ChunkStage<S>& stage,
                                            const ChunkTurns<S>& turns, TokenBefore<S>& to) {
    const int kept = min(begin + S::kTokens, at.end) - 1 - begin;
    const int own = kept - first;
    if (own < 0 || own >= S::kWarpTokens) return;
    keep_k(rows.token_b(job, at, begin + first, own), turns, parameters, places.lane, kept, to);
    __pipeline_wait_prior(0);
    __syncwarp();
    keep_x(job, at, begin, stage, kept, to);
  }

  __device__ __forceinline__ void run() {
    StageCursor cursor;
    rows.request(job, at, at.begin + first);
    int stretch_end = at.begin;
    for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
      const int s = cursor.stage;
      ChunkStage<S>& stage = m.stages[s];
      barrier_wait(&m.turned[s], cursor.parity);
      TokenRotations<S> rotations;
      load_rotations(m.turns[s], places, rotations);
      barrier_wait(&m.emptied[s], cursor.parity ^ 1);
      rows.wait();
      if (S::kRank == 1) bring_columns(begin, cursor);
      rotate_rows<S>(rows, rotations, parameters, places.row, stage, [&] {
        if (S::kRank > 1) bring_columns(begin, cursor);
      });
      const int next = begin + S::kTokens;
      if (begin == stretch_end) stretch_end += kGridTokens;
      if (__builtin_expect(next >= min(stretch_end, at.end), 0)) {
        keep_last(begin, stage, m.turns[s], m.kept[s]);
      }
      if (next < at.end) rows.request(job, at, next + first);
      __pipeline_wait_prior(0);
      __syncwarp();
      if constexpr (S::kOutputs) make_gates(begin, stage);
      arrive_warp(&m.filled[s], places.lane);
      cursor.next();
    }
  }
};

}  // namespace
}  // namespace mamba3
