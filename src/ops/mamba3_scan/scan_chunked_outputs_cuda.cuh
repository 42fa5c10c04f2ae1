// The outputs of the chunked scan, by one warpgroup: read-outs, skip, out-norm, gates, the sum over
// ranks, rows of y.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_products_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_ranks_cuda.cuh"

namespace mamba3 {
namespace {

// What the decays of a chunk make of the thread's scores and of its rows of Q h.
template <class S>
struct RowWeights {
  ScoreWeights<S> scores;
  float decays[2];

  __device__ __forceinline__ RowWeights(const ChunkWeights<S>& of_chunk, const Fragment& own) {
    make_score_weights<S>(of_chunk, own, scores);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      decays[half] = of_chunk.start_decay[Weights<S>::row_token(own, half)];
    }
  }
};

// O = decayed Q h + weighted scores X, in the second half of `products`. When this returns the last
// product is still being made. Calls `meanwhile` while the first one is, and `emptied` behind it.
template <class S, class F, class G>
__device__ __forceinline__ void start_read_out(const Fragment& own, const ChunkStage<S>& stage,
                                               const RowWeights<S>& weights,
                                               float (&products)[2][kAccumulators],
                                               const F& meanwhile, const G& emptied) {
  auto& scores = products[0];
  auto& o = products[1];
  wgmma_fence();
  multiply_rows(stage, products);
  wgmma_commit();
  __syncwarp();  // loads shall not go before a product
  meanwhile();
  wgmma_wait<0>();
  wgmma_hold(scores);
  wgmma_hold(o);
  emptied();
  std::uint32_t weighted[4][4];
  weigh_scores<S>(weights.scores, scores, weighted);
#pragma unroll
  for (int i = 0; i < kAccumulators; ++i) o[i] *= weights.decays[i / 2 % 2];
  const std::uint64_t x = wgmma_operand(stage.x_rows());
  wgmma_hold(o);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma_k16<1>(o, weighted[step], wgmma_further(x, step * 16 * kTileRowBytes));
  }
  wgmma_commit();
  __syncwarp();
}

// A token's row of x, as a thread reads the columns of its fragment: of a tile in bf16, or, as
// the op was given it, in fp32. Behind the end are zeros.
template <bool kWide>
struct ColumnRow {
  std::uint32_t tile;  // address of the thread's first columns
  const float* wide;   // the same; null behind the end

  // Columns 8 j + `column` and the next.
  __device__ __forceinline__ float2 pair(int j) const {
    float2 out = make_float2(0, 0);
    if constexpr (!kWide) {
      unpack_bf16(load_shared(at_piece(tile, j)), out.x, out.y);
    } else if (wide != nullptr) {
      out = make_float2(wide[8 * j], wide[8 * j + 1]);
    }
    return out;
  }
};

// The row and the columns of a thread's y, of which every `kYStep`-th step of columns is there.
template <class S>
constexpr int kYStep = S::kRank == 4 ? 2 : 1;
template <class S>
__device__ __forceinline__ unsigned y_row(const Fragment& own) {
  return S::kRank == 4 ? own.row - own.row % 2 : own.row;
}
template <class S>
__device__ __forceinline__ unsigned y_column(const Fragment& own) {
  return S::kRank == 4 ? own.row % 2 * 8 + own.column : own.column;
}

// Where a thread finds and puts what is its own of every chunk.
template <class S>
struct OutputPlaces {
  std::uint32_t gates;  // of its first row, in bytes from a stage's gates
  std::uint32_t y;      // of its y, the same
  std::uint32_t skips;  // of its token, in bytes from a stage's x
  // Of a piece of y in bf16 that it brings to memory: bytes from a stage's gates, the token from
  // the chunk's start, and where it goes.
  std::uint32_t piece;
  int token;
  __nv_bfloat16* to;

  __device__ __forceinline__ OutputPlaces(const ChunkedScanJob& job, const ChunkPlace& at) {
    const Fragment own;
    gates = held(gate_place(own.row, own.column));
    y = held(y_place(y_row<S>(own), y_column<S>(own)));
    skips = held(skip_place<S>(Weights<S>::row_token(own, 0), y_column<S>(own)));
    const unsigned first = at.warp % kGroupWarps * (2 * S::kWarpTokens) + at.lane / kRowPieces;
    const unsigned column = at.lane % kRowPieces * 8;
    piece = held(y_place(S::row(first, 0), column));
    token = static_cast<int>(held(first));
    to = static_cast<__nv_bfloat16*>(job.y) + (std::int64_t{at.begin} + token) * job.y_stride +
         at.head * kChunkHeadDim + column;
  }

  __device__ __forceinline__ void next(const ChunkedScanJob& job) {
    to += S::kTokens * job.y_stride;
  }
};

// Where the outputs of a chunk are made: what most functions below need. kWide: z, x and y are
// fp32.
template <class S, bool kWide>
struct Outputs {
  using Shape = S;
  using Row = ColumnRow<kWide>;
  static constexpr bool kIsWide = kWide;
  const ChunkedScanJob& job;
  const ChunkPlace& at;
  const OutputPlaces<S>& places;
  ChunkMemory<S>& m;
  ChunkStage<S>& stage;
  Fragment own;
  int begin;

  __device__ __forceinline__ Row x(unsigned token) const {
    if constexpr (!kWide) {
      return {shared_address(stage.x) + place_in_x<S>(token, own.column), nullptr};
    }
    if (begin + static_cast<int>(token) >= at.end) return {0, nullptr};
    return {0, job.columns.x + (begin + token) * job.columns.row_stride + at.head * kChunkHeadDim +
                   own.column};
  }
};

// The rank of the thread's row `half`.
template <class S>
__device__ __forceinline__ unsigned rank_of(const Fragment& own, unsigned half) {
  if (S::kRank == 1) return 0;
  return S::kRank == 2 ? half : own.row % 2 + 2 * half;
}

// o += skip X. With several ranks both rows are of one token.
template <class Out>
__device__ __forceinline__ void add_skip_x(const Out& out, float (&o)[kAccumulators]) {
  using S = typename Out::Shape;
  const typename Out::Row rows[2] = {out.x(Weights<S>::row_token(out.own, 0)),
                                     out.x(Weights<S>::row_token(out.own, 1))};
  float2 skip = make_float2(out.m.skip_x[0][0], out.m.skip_x[0][0]);  // with one rank, of all p
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
    float2 x = rows[0].pair(j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (S::kRank > 1) {
        skip = *reinterpret_cast<const float2*>(
            &out.m.skip_x[rank_of<S>(out.own, half)][8 * j + out.own.column]);
      } else if (half == 1) {
        x = rows[1].pair(j);
      }
      float* to = &o[4 * j + 2 * half];
      to[0] = fmaf(skip.x, x.x, to[0]);
      to[1] = fmaf(skip.y, x.y, to[1]);
    }
  }
}

// Normalises the thread's row `half` over the head.
template <class Out>
__device__ __forceinline__ void norm_row(const Out& out, int half, float (&o)[kAccumulators]) {
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
    const float* from = &o[4 * j + 2 * half];
    squares = fmaf(from[0], from[0], fmaf(from[1], from[1], squares));
  }
  squares += __shfl_xor_sync(0xffffffffu, squares, 1);
  squares += __shfl_xor_sync(0xffffffffu, squares, 2);
  const float scale = 1.0f / sqrtf(squares / kChunkHeadDim + static_cast<float>(kBcNormEps));
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      o[4 * j + 2 * half + e] *= scale * out.m.out_norm[8 * j + out.own.column + e];
    }
  }
}

// The gates of the thread's two rows, from the address of the first.
struct GateRows {
  float2 first[kColumnSteps];
  float2 second[kColumnSteps];

  __device__ __forceinline__ explicit GateRows(std::uint32_t place) {
#pragma unroll
    for (int j = 0; j < kColumnSteps; ++j) {
      first[j] = load_shared_pair<0>(place ^ (j << 5));
      second[j] = load_shared_pair<8 * kGateRowBytes>(place ^ (j << 5));
    }
  }
};

// The gated read-outs: y where a row is a token.
__device__ __forceinline__ void gate_rows(const GateRows& gates, float (&o)[kAccumulators]) {
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
    o[4 * j] *= gates.first[j].x;
    o[4 * j + 1] *= gates.first[j].y;
    o[4 * j + 2] *= gates.second[j].x;
    o[4 * j + 3] *= gates.second[j].y;
  }
}

// y of a token that has several rows, in the place of the first: two of them are in this thread.
__device__ __forceinline__ void add_ranks(float (&y)[kAccumulators]) {
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
    y[4 * j] += y[4 * j + 2];
    y[4 * j + 1] += y[4 * j + 3];
  }
}

// With four ranks the other two are in the lane four further. Of each two steps of columns this
// thread gets the first, that one the second, where the first stood.
__device__ __forceinline__ void add_other_ranks(const Fragment& own, float (&y)[kAccumulators]) {
  const bool second = own.row % 2 != 0;
#pragma unroll
  for (int j = 0; j < kColumnSteps; j += 2) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float& a = y[4 * j + e];
      const float b = y[4 * j + 4 + e];
      const float other = __shfl_xor_sync(0xffffffffu, second ? a : b, 4);
      a = (second ? b : a) + other;
    }
  }
}

// What is skipped to a thread's y, which the rotating warps have made of all ranks, from its
// address. Where the read-outs have it, because they are normalised, nobody adds this.
template <class S>
struct Skips {
  float2 of_step[kColumnSteps / kYStep<S>];

  __device__ __forceinline__ explicit Skips(std::uint32_t place) {
    if constexpr (S::kRank > 1) {
#pragma unroll
      for (int j = 0; j < kColumnSteps; j += kYStep<S>) {
        of_step[j / kYStep<S>] = load_shared_pair(place ^ (j << 5));
      }
    }
  }

  __device__ __forceinline__ void add_to(float (&y)[kAccumulators]) const {
#pragma unroll
    for (int j = 0; j < kColumnSteps; j += kYStep<S>) {
      y[4 * j] += of_step[j / kYStep<S>].x;
      y[4 * j + 1] += of_step[j / kYStep<S>].y;
    }
  }
};

// y in bf16 waits for whole rows to go out: each row in the first half of its gates' row, in the
// order of a tile. Only this warp reads those gates, and it has.
template <class Out>
__device__ __forceinline__ void put_rows(const Out& out, const float (&y)[kAccumulators]) {
  using S = typename Out::Shape;
  const std::uint32_t place = shared_address(out.stage.gates) + out.places.y;
#pragma unroll
  for (int j = 0; j < kColumnSteps; j += kYStep<S>) {
    store_shared(at_piece(place, j), pack_bf16(y[4 * j], y[4 * j + 1]));
    if (S::kRank > 1) continue;
    store_shared<8 * kGateRowBytes>(at_piece(place, j), pack_bf16(y[4 * j + 2], y[4 * j + 3]));
  }
}

// The rows of y that this warp has made: a lane takes eight columns of a row, and of every fourth
// after it.
template <class Out>
__device__ __forceinline__ void store_rows(const Out& out) {
  using S = typename Out::Shape;
  constexpr int kTokens = 2 * S::kWarpTokens;
  constexpr int kTokensAtOnce = kWarpLanes / kRowPieces;
  const std::uint32_t from = shared_address(out.stage.gates) + out.places.piece;
  for_each_number<kTokens / kTokensAtOnce>([&](auto number) {
    constexpr int kToken = decltype(number)::value * kTokensAtOnce;
    constexpr unsigned kRow = S::row(kToken, 0);
    const uint4 piece = load_shared_piece<kRow * kGateRowBytes>(at_piece(from, kRow % 8));
    if (out.begin + out.places.token + kToken >= out.at.end) return;
    __stwb(reinterpret_cast<uint4*>(out.places.to + kToken * out.job.y_stride), piece);
  });
}

// y in fp32.
template <class Out>
__device__ __forceinline__ void store_wide(const Out& out, const float (&y)[kAccumulators]) {
  using S = typename Out::Shape;
#pragma unroll
  for (int half = 0; half < (S::kRank == 1 ? 2 : 1); ++half) {
    const std::int64_t token = out.begin + Weights<S>::row_token(out.own, half);
    if (token >= out.at.end) continue;
    float* to = static_cast<float*>(out.job.y) + token * out.job.y_stride +
                out.at.head * kChunkHeadDim + y_column<S>(out.own);
#pragma unroll
    for (int j = 0; j < kColumnSteps; j += kYStep<S>) {
      to[8 * j] = y[4 * j + 2 * half];
      to[8 * j + 1] = y[4 * j + 2 * half + 1];
    }
  }
}

// `o` becomes y.
template <class Out>
__device__ __forceinline__ void write_chunk(const Out& out, const GateRows& gates,
                                            const Skips<typename Out::Shape>& skips,
                                            float (&o)[kAccumulators]) {
  using S = typename Out::Shape;
  const bool normed = out.job.sizes.out_norm;
  if (S::kRank == 1 || normed) add_skip_x(out, o);
  if (normed) {
#pragma unroll
    for (int half = 0; half < 2; ++half) norm_row(out, half, o);
  }
  gate_rows(gates, o);
  if constexpr (S::kRank > 1) {
    add_ranks(o);
    if constexpr (S::kRank == 4) add_other_ranks(out.own, o);
    if (!normed) skips.add_to(o);
  }
  if constexpr (Out::kIsWide) {
    store_wide(out, o);
  } else {
    __syncwarp();
    put_rows(out, o);
    __syncwarp();
    store_rows(out);
  }
}

// One warpgroup's way through the chunks of a sequence.
template <class S>
__device__ __forceinline__ void make_outputs(const ChunkedScanJob& job, ChunkPlace at,
                                             ChunkMemory<S>& m, RankSpreader<S>& ranks) {
  OutputPlaces<S> places(job, at);
  Fragment own;
  StageCursor cursor;
  for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
    forget_lane(at);
    own.forget();
    const int s = cursor.uniform_stage();
    ChunkStage<S>& stage = m.stages[s];
    barrier_wait(&m.shown[s], cursor.parity);
    const RowWeights<S> weights(m.weights[cursor.weights()], own);
    barrier_wait(&m.filled[s], cursor.parity);
    fence_async_proxy();
    cursor.next();
    float products[2][kAccumulators];
    auto& o = products[1];
    start_read_out<S>(
        own, stage, weights, products,
        [&] {
          // The state before this chunk came after the weights of the next.
          const int next = begin + S::kTokens;
          if (S::kRank > 1 && next < at.end) ranks.make(job, at, next, cursor, m);
        },
        [&] { arrive_warp(&m.emptied[s], at.lane); });
    const GateRows gates(shared_address(stage.gates) + places.gates);
    const Skips<S> skips(shared_address(stage.x) + places.skips);
    wgmma_wait<0>();
    wgmma_hold(o);
    if (__builtin_expect(job.y_bf16, 1)) {
      write_chunk(Outputs<S, false>{job, at, places, m, stage, own, begin}, gates, skips, o);
    } else {
      write_chunk(Outputs<S, true>{job, at, places, m, stage, own, begin}, gates, skips, o);
    }
    arrive_warp(&m.written[s], at.lane);
    places.next(job);
  }
}

// The same where only X is made.
template <class S>
__device__ __forceinline__ void spread_ranks(const ChunkedScanJob& job, const ChunkPlace& at,
                                             ChunkMemory<S>& m, RankSpreader<S>& ranks) {
  StageCursor cursor;
  for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
    barrier_wait(&m.turned[cursor.stage], cursor.parity);
    ranks.make(job, at, begin, cursor, m);
    cursor.next();
  }
}

// What the first warpgroup does.
template <class S>
__device__ __forceinline__ void run_outputs(const ChunkedScanJob& job, const ChunkPlace& at,
                                            ChunkMemory<S>& m) {
  RankSpreader<S> ranks(job, at, m);
  if constexpr (S::kRank > 1) ranks.request(job, at.begin, at.end);
  if constexpr (!S::kOutputs) {
    if constexpr (S::kRank > 1) spread_ranks(job, at, m, ranks);
    return;
  } else {
    if constexpr (S::kRank > 1) {
      barrier_wait(&m.turned[0], 0);
      ranks.make(job, at, at.begin, StageCursor{}, m);
    }
    make_outputs(job, at, m, ranks);
  }
}

}  // namespace
}  // namespace mamba3
