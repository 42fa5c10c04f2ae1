// The outputs of the chunked scan, by one warpgroup: read-outs, skip, out-norm, gates, the sum over
// ranks, rows of y.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_products_cuda.cuh"

namespace mamba3 {
namespace {

// O = decayed Q h + weighted scores X.
template <class S>
__device__ __forceinline__ void read_out(const Fragment& own, const ChunkStage<S>& stage,
                                         float (&out)[kAccumulators]) {
  float products[2][kAccumulators];
  auto& scores = products[0];
  auto& o = products[1];
  wgmma_fence();
  multiply_rows(stage, products);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(scores);
  wgmma_hold(o);
  std::uint32_t weighted[4][4];
  weigh_scores<S>(stage, own, scores, weighted);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float decay = stage.start_decay[Weights<S>::row_token(own, half)];
#pragma unroll
    for (int j = 0; j < kColumnSteps; ++j) {
      o[4 * j + 2 * half] *= decay;
      o[4 * j + 2 * half + 1] *= decay;
    }
  }
  const std::uint64_t x = wgmma_operand(stage.x_rows());
  wgmma_hold(o);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma_k16<1>(o, weighted[step], wgmma_further(x, step * 16 * kTileRowBytes));
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(o);
#pragma unroll
  for (int i = 0; i < kAccumulators; ++i) out[i] = o[i];
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

// Where the outputs of a chunk are made: what most functions below need. kWide: z, x and y are
// fp32.
template <class S, bool kWide>
struct Outputs {
  using Shape = S;
  using Row = ColumnRow<kWide>;
  static constexpr bool kIsWide = kWide;
  const ChunkedScanJob& job;
  const ChunkPlace& at;
  ChunkMemory<S>& m;
  ChunkStage<S>& stage;
  Fragment own;
  int begin;

  __device__ __forceinline__ Row x(unsigned token) const {
    if constexpr (!kWide) return {tile_address(stage.x, token), nullptr};
    if (begin + static_cast<int>(token) >= at.end) return {0, nullptr};
    return {0, job.columns.x + (begin + token) * job.columns.row_stride + at.head * kChunkHeadDim +
                   own.column};
  }

 private:
  __device__ __forceinline__ std::uint32_t tile_address(const unsigned char* tile,
                                                        unsigned token) const {
    return shared_address(tile) + swizzled(token, own.column);
  }
};

// o += skip X, normalised over the head where the layer does.
template <class Out>
__device__ __forceinline__ void finish_read_out(const Out& out, unsigned token, unsigned r,
                                                int half, float (&o)[kAccumulators]) {
  float squares = 0;
  const typename Out::Row x_row = out.x(token);
  float2 skip = make_float2(out.m.skip_x[0][0], out.m.skip_x[0][0]);  // with one rank, of all p
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
    const float2 x = x_row.pair(j);
    if constexpr (Out::Shape::kRank > 1) {
      skip = *reinterpret_cast<const float2*>(&out.m.skip_x[r][8 * j + out.own.column]);
    }
    float* to = &o[4 * j + 2 * half];
    to[0] = fmaf(skip.x, x.x, to[0]);
    to[1] = fmaf(skip.y, x.y, to[1]);
    squares = fmaf(to[0], to[0], fmaf(to[1], to[1], squares));
  }
  if (!out.job.sizes.out_norm) return;
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

// The rank of the thread's row `half`.
template <class S>
__device__ __forceinline__ unsigned rank_of(const Fragment& own, unsigned half) {
  if (S::kRank == 1) return 0;
  return S::kRank == 2 ? half : own.row % 2 + 2 * half;
}

// The gates of the thread's two rows, by the address of the first.
struct GateRows {
  std::uint32_t place;
  template <class Out>
  __device__ __forceinline__ explicit GateRows(const Out& out)
      : place(shared_address(out.stage.gates) + gate_place(out.own.row, out.own.column)) {}
  template <int kHalf>
  __device__ __forceinline__ float2 pair(int j) const {
    return load_shared_pair<kHalf * 8 * kGateRowBytes>(place ^ (j << 5));
  }
};

// y where a row is a token: the gated read-outs.
template <class Out>
__device__ __forceinline__ void gate_rows(const Out& out, float (&o)[kAccumulators]) {
  const GateRows gates(out);
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
    const float2 first = gates.pair<0>(j);
    const float2 second = gates.pair<1>(j);
    o[4 * j] *= first.x;
    o[4 * j + 1] *= first.y;
    o[4 * j + 2] *= second.x;
    o[4 * j + 3] *= second.y;
  }
}

// y of a token that has several rows, in the place of the first: two of them are in this thread,
// with rank 4 two more in the lane four further.
template <class Out>
__device__ __forceinline__ void gate_ranks(const Out& out, float (&o)[kAccumulators]) {
  const GateRows gates(out);
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
    const float2 first = gates.pair<0>(j);
    const float2 second = gates.pair<1>(j);
    float2 y = make_float2(fmaf(o[4 * j], first.x, o[4 * j + 2] * second.x),
                           fmaf(o[4 * j + 1], first.y, o[4 * j + 3] * second.y));
    if constexpr (Out::Shape::kRank == 4) {
      y.x += __shfl_xor_sync(0xffffffffu, y.x, 4);
      y.y += __shfl_xor_sync(0xffffffffu, y.y, 4);
    }
    o[4 * j] = y.x;
    o[4 * j + 1] = y.y;
  }
}

// y in bf16 waits for whole rows to go out: each row in the first half of its gates' row, in the
// order of a tile. Only this warp reads those gates, and it has.
template <class Out>
__device__ __forceinline__ void put_rows(const Out& out, const float (&y)[kAccumulators]) {
  using S = typename Out::Shape;
  if (S::kRank == 4 && out.own.row % 2 != 0) return;
  const std::uint32_t place =
      shared_address(out.stage.gates) + y_place(out.own.row, out.own.column);
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
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
  const ChunkPlace& at = out.at;
  const unsigned first = at.warp % kGroupWarps * kTokens + at.lane / kRowPieces;
  const unsigned column = at.lane % kRowPieces * 8;
  const std::uint32_t from = shared_address(out.stage.gates) + y_place(S::row(first, 0), column);
  auto* to = static_cast<__nv_bfloat16*>(out.job.y) + (out.begin + first) * out.job.y_stride +
             at.head * kChunkHeadDim + column;
  for_each_number<kTokens / kTokensAtOnce>([&](auto number) {
    constexpr int kToken = decltype(number)::value * kTokensAtOnce;
    constexpr unsigned kRow = S::row(kToken, 0);
    const uint4 piece = load_shared_piece<kRow * kGateRowBytes>(at_piece(from, kRow % 8));
    if (out.begin + static_cast<int>(first) + kToken >= at.end) return;
    *reinterpret_cast<uint4*>(to + kToken * out.job.y_stride) = piece;
  });
}

// y in fp32.
template <class Out>
__device__ __forceinline__ void store_wide(const Out& out, const float (&y)[kAccumulators]) {
  using S = typename Out::Shape;
  if (S::kRank == 4 && out.own.row % 2 != 0) return;
#pragma unroll
  for (int half = 0; half < (S::kRank == 1 ? 2 : 1); ++half) {
    const std::int64_t token = out.begin + Weights<S>::row_token(out.own, half);
    if (token >= out.at.end) continue;
    float* to = static_cast<float*>(out.job.y) + token * out.job.y_stride +
                out.at.head * kChunkHeadDim + out.own.column;
#pragma unroll
    for (int j = 0; j < kColumnSteps; ++j) {
      to[8 * j] = y[4 * j + 2 * half];
      to[8 * j + 1] = y[4 * j + 2 * half + 1];
    }
  }
}

// `o` becomes y.
template <class Out>
__device__ __forceinline__ void write_chunk(const Out& out, float (&o)[kAccumulators]) {
  using S = typename Out::Shape;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    finish_read_out(out, Weights<S>::row_token(out.own, half), rank_of<S>(out.own, half), half, o);
  }
  if constexpr (S::kRank == 1) {
    gate_rows(out, o);
  } else {
    gate_ranks(out, o);
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
                                             ChunkMemory<S>& m) {
  Fragment own;
  StageCursor cursor;
  for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
    forget_lane(at);
    own.forget();
    const int s = cursor.uniform_stage();
    ChunkStage<S>& stage = m.stages[s];
    barrier_wait(&m.filled[s], cursor.parity);
    barrier_wait(&m.shown[s], cursor.parity);
    float o[kAccumulators];
    read_out<S>(own, stage, o);
    if (__builtin_expect(job.y_bf16, 1)) {
      write_chunk(Outputs<S, false>{job, at, m, stage, own, begin}, o);
    } else {
      write_chunk(Outputs<S, true>{job, at, m, stage, own, begin}, o);
    }
    arrive_warp(&m.emptied[s], at.lane);
    cursor.next();
  }
}

}  // namespace
}  // namespace mamba3
