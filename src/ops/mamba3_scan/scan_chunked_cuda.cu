// One block walks one head of one sequence, chunk by chunk. docs/SEMANTICS.md derives the merged
// form: in a chunk
//   O = (Q K^T with decays and weights) X + decayed Q h,    h' = decay h + (faded X)^T K
// are four matrix products in bf16 with fp32 sums; weights are applied to the scores in fp32. One
// warpgroup makes O and y; the other has h in its accumulators, and makes the gates.
#include <algorithm>
#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_cuda.h"
#include "ops/mamba3_scan/scan_chunked_tile_cuda.cuh"

// Code for other cards than Hopper has none of what the kernel calls.
#pragma nv_diag_suppress 177

namespace mamba3 {
namespace {

// Of a thread in each warpgroup; together those of 2 x 128 threads with 128 each.
constexpr int kOutputRegisters = 104;
constexpr int kStateRegisters = 152;
constexpr int kAccumulators = 32;  // of a thread, in a product of 64 by 64
constexpr int kColumnSteps = 8;    // of eight columns each

// Which rows and columns of a 64 by 64 product this thread has: rows `row` and `row` + 8, columns
// 8 j + `column` and the next, in d[4 j], d[4 j + 1] and d[4 j + 2], d[4 j + 3].
struct Fragment {
  int row;
  int column;
  __device__ Fragment()
      : row(static_cast<int>(threadIdx.x) % kGroupThreads / kWarpLanes * 16 +
            static_cast<int>(threadIdx.x) % kWarpLanes / 4),
        column(static_cast<int>(threadIdx.x) % 4 * 2) {}
  // See Walk::forget_lane.
  __device__ __forceinline__ void forget() { asm volatile("" : "+r"(row), "+r"(column)); }
};

template <class S>
using State = float[S::kTiles][kAccumulators];  // [p, n] transposed products: rows are p

template <class S>
__device__ __forceinline__ void load_state(const ChunkedScanJob& job, const float* ssm,
                                           const Fragment& own, State<S>& h) {
#pragma unroll
  for (int i = 0; i < S::kTiles * kAccumulators; ++i) {
    const int j = i % kAccumulators / 4;
    const int at = i / kAccumulators * kTileColumns + 8 * j + own.column + i % 2;
    const int p = own.row + i % 4 / 2 * 8;
    h[i / kAccumulators][i % kAccumulators] =
        ssm[canonical_place(job.sizes, at) * kChunkHeadDim + p];
  }
}

template <class S>
__device__ __forceinline__ void store_state(const ChunkedScanJob& job, const Fragment& own,
                                            const State<S>& h, float* ssm) {
#pragma unroll
  for (int i = 0; i < S::kTiles * kAccumulators; ++i) {
    const int j = i % kAccumulators / 4;
    const int at = i / kAccumulators * kTileColumns + 8 * j + own.column + i % 2;
    const int p = own.row + i % 4 / 2 * 8;
    ssm[canonical_place(job.sizes, at) * kChunkHeadDim + p] =
        h[i / kAccumulators][i % kAccumulators];
  }
}

// The share of the token before: h += weight * sum of X K^T over ranks, in fp32.
template <class S>
__device__ __forceinline__ void add_before(const ChunkMemory<S>& m, float weight,
                                           const Fragment& own, State<S>& h) {
#pragma unroll
  for (int r = 0; r < S::kRank; ++r) {
    const float x[2] = {weight * (m.x_before[own.row] * m.mimo_x[r][own.row]),
                        weight * (m.x_before[own.row + 8] * m.mimo_x[r][own.row + 8])};
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < kColumnSteps; ++j) {
        const float2 k = m.k_before[r][(tile * kTileColumns + 8 * j + own.column) / 2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* to = &h[tile][4 * j + 2 * half];
          to[0] = fmaf(x[half], k.x, to[0]);
          to[1] = fmaf(x[half], k.y, to[1]);
        }
      }
    }
  }
}

// The state as products read it.
template <class S>
__device__ __forceinline__ void show_state(const Fragment& own, const State<S>& h,
                                           ChunkMemory<S>& m) {
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < kColumnSteps; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* from = &h[tile][4 * j + 2 * half];
        *reinterpret_cast<std::uint32_t*>(m.h[tile] +
                                          swizzled(own.row + 8 * half, 8 * j + own.column)) =
            pack_bf16(from[0], from[1]);
      }
    }
  }
}

// d = A B^T over n, both [64, n].
template <class S>
__device__ __forceinline__ void multiply_rows(const unsigned char (*a)[kTileBytes],
                                              const unsigned char (*b)[kTileBytes],
                                              float (&d)[kAccumulators]) {
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_k16<0, 0>(d, wgmma_operand(shared_address(a[tile]) + step * 32),
                      wgmma_operand(shared_address(b[tile]) + step * 32), tile + step > 0);
    }
  }
}

// Tokens whose decays a thread needs: one or two of rows, and of each 16 columns one to four.
template <class S>
struct Weights {
  static constexpr int kRowTokens = S::kRank == 1 ? 2 : 1;
  static constexpr int kColumnTokens = S::kRank == 1 ? 4 : S::kRank == 2 ? 2 : 1;

  static __device__ __forceinline__ int row_token(const Fragment& own, int half) {
    if (S::kRank == 1) return own.row + 8 * half;
    if (S::kRank == 2) return own.row / 16 * 8 + own.row % 8;
    return own.row / 16 * 4 + own.row % 8 / 2;
  }
  // `i`: which of the thread's columns among the 16 with number `group`.
  static __device__ __forceinline__ int column_token(const Fragment& own, int group, int i) {
    if (S::kRank == 1) return 16 * group + i / 2 * 8 + own.column + i % 2;
    if (S::kRank == 2) return 8 * group + own.column + i;
    return 4 * group + own.column / 2;
  }
  static __device__ __forceinline__ int column_index(int j, int e) {
    return S::kRank == 1 ? 2 * j + e : S::kRank == 2 ? e : 0;
  }
};

// The weight of an earlier token's outer product for a later one's read-out.
__device__ __forceinline__ float pair_weight(const TokenTerms& row, const TokenTerms& column) {
  return fast_exp2((row.decay_high - column.decay_high) + (row.decay_low - column.decay_low)) *
         column.fill;
}

// 16 columns of the scores with their weights, as the next product takes them. kDiagonal: those of
// the rows' own tokens, where what is later counts for nothing, whatever it is.
template <class S, bool kDiagonal>
__device__ __forceinline__ void weigh_columns(const ChunkMemory<S>& m, const Fragment& own,
                                              const TokenTerms (&rows)[Weights<S>::kRowTokens],
                                              int group, const float* scores,
                                              std::uint32_t (&out)[4]) {
  using W = Weights<S>;
  float weights[W::kRowTokens][W::kColumnTokens];
  bool later[W::kRowTokens][W::kColumnTokens];
#pragma unroll
  for (int c = 0; c < W::kColumnTokens; ++c) {
    const int token = W::column_token(own, group, c);
    const TokenTerms column = m.terms[token];
#pragma unroll
    for (int i = 0; i < W::kRowTokens; ++i) {
      weights[i][c] = pair_weight(rows[i], column);
      later[i][c] = false;
      if constexpr (kDiagonal) {
        const int row_token = W::row_token(own, i);
        later[i][c] = token > row_token;
        if (token == row_token) weights[i][c] = rows[i].now;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float weighted[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = W::kRowTokens == 2 ? half : 0;
        const int c = W::column_index(j, e);
        weighted[e] = later[i][c] ? 0.0f : weights[i][c] * scores[4 * j + 2 * half + e];
      }
      out[2 * j + half] = pack_bf16(weighted[0], weighted[1]);
    }
  }
}

template <class S>
__device__ __forceinline__ void weigh_scores(const ChunkMemory<S>& m, const Fragment& own,
                                             const float (&scores)[kAccumulators],
                                             std::uint32_t (&out)[4][4]) {
  using W = Weights<S>;
  TokenTerms rows[W::kRowTokens];
#pragma unroll
  for (int i = 0; i < W::kRowTokens; ++i) rows[i] = m.terms[W::row_token(own, i)];
  const int diagonal = own.row / 16;
#pragma unroll
  for (int group = 0; group < 4; ++group) {
    if (group < diagonal) {
      weigh_columns<S, false>(m, own, rows, group, &scores[8 * group], out[group]);
    } else if (group == diagonal) {
      weigh_columns<S, true>(m, own, rows, group, &scores[8 * group], out[group]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[group][i] = 0;
    }
  }
}

// Between the warpgroups, one of which waits: barriers by number; 0 is __syncthreads.
enum Event { kStateRead = 1, kGatesMade = 2 };

__device__ __forceinline__ void wait_for(Event event) {
  asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(event)), "n"(kChunkThreads) : "memory");
}
__device__ __forceinline__ void tell(Event event) {
  asm volatile("bar.arrive %0, %1;" ::"r"(static_cast<int>(event)), "n"(kChunkThreads) : "memory");
}

// Where the outputs of a chunk are made: what most functions below need. kWide: z, x and y are
// fp32.
template <class S, bool kWide>
struct Outputs {
  using Shape = S;
  static constexpr bool kIsWide = kWide;
  const ChunkedScanJob& job;
  const ChunkPlace& at;
  ChunkMemory<S>& m;
  Fragment own;
  int begin;

  __device__ __forceinline__ float2 x(int token, int p) const {
    return column_pair<kWide>(job, at, job.columns.x, m.x, begin, token, p);
  }
  __device__ __forceinline__ float2 z(int token, int p) const {
    return column_pair<kWide>(job, at, job.columns.z, m.z, begin, token, p);
  }
  // y in bf16 waits in the place of z, which the same thread has read, until whole rows go out.
  __device__ __forceinline__ void put_y(int token, int p, float a, float b) const {
    if (job.y_bf16) {
      *reinterpret_cast<std::uint32_t*>(m.z + swizzled(token, p)) = pack_bf16(a, b);
      return;
    }
    if (begin + token >= at.end) return;
    float* to =
        static_cast<float*>(job.y) + (begin + token) * job.y_stride + at.head * kChunkHeadDim + p;
    to[0] = a;
    to[1] = b;
  }
};

// o += skip X, normalised over the head where the layer does.
template <class Out>
__device__ __forceinline__ void finish_read_out(const Out& out, int token, int r, int half,
                                                float (&o)[kAccumulators]) {
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kColumnSteps; ++j) {
    const int p = 8 * j + out.own.column;
    const float2 x = out.x(token, p);
    const float2 skip = *reinterpret_cast<const float2*>(&out.m.skip_x[r][p]);
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

__device__ __forceinline__ float fast_silu(float v) {
  constexpr float kLog2e = 1.44269504f;
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + fast_exp2(-kLog2e * v)));
  return v * inverse;
}

// The rank of the thread's row `half`.
template <class S>
__device__ __forceinline__ int rank_of(const Fragment& own, int half) {
  if (S::kRank == 1) return 0;
  return S::kRank == 2 ? half : own.row % 2 + 2 * half;
}

// The place of four gates of this thread, for columns 16 i + `column` and 16 i + 8 + `column`.
template <class S>
__device__ __forceinline__ float4* gates(ChunkMemory<S>& m, int half, int i) {
  return reinterpret_cast<float4*>(m.h) + (half * kColumnSteps / 2 + i) * kGroupThreads +
         threadIdx.x % kGroupThreads;
}

// What the read-outs are multiplied with, by the warpgroup that has the state: each thread for the
// one with the same fragment of them.
template <class Out>
__device__ __forceinline__ void make_gates(const Out& out) {
  using S = typename Out::Shape;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = Weights<S>::row_token(out.own, half);
    const int r = rank_of<S>(out.own, half);
#pragma unroll
    for (int i = 0; i < kColumnSteps / 2; ++i) {
      float4 gate;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int p = 16 * i + 8 * j + out.own.column;
        float2 z = out.z(token, p);
        float2 weight = make_float2(1, 1);
        if constexpr (S::kRank > 1) {
          const float2 z_weight = *reinterpret_cast<const float2*>(&out.m.mimo_z[r][p]);
          weight = *reinterpret_cast<const float2*>(&out.m.mimo_o[r][p]);
          z = make_float2(z.x * z_weight.x, z.y * z_weight.y);
        }
        (j == 0 ? gate.x : gate.z) = weight.x * fast_silu(z.x);
        (j == 0 ? gate.y : gate.w) = weight.y * fast_silu(z.y);
      }
      *gates(out.m, half, i) = gate;
    }
  }
}

// y where a row is a token.
template <class Out>
__device__ __forceinline__ void gate_rows(const Out& out, const float (&o)[kAccumulators]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = out.own.row + 8 * half;
#pragma unroll
    for (int i = 0; i < kColumnSteps / 2; ++i) {
      const float4 gate = *gates(out.m, half, i);
      const float* from = &o[8 * i + 2 * half];
      const int p = 16 * i + out.own.column;
      out.put_y(token, p, from[0] * gate.x, from[1] * gate.y);
      out.put_y(token, p + 8, from[4] * gate.z, from[5] * gate.w);
    }
  }
}

// The same where a token has several rows: two of them in this thread, with rank 4 two more in the
// lane four further.
template <class Out>
__device__ __forceinline__ void gate_ranks(const Out& out, const float (&o)[kAccumulators]) {
  using S = typename Out::Shape;
  const int token = Weights<S>::row_token(out.own, 0);
#pragma unroll
  for (int i = 0; i < kColumnSteps / 2; ++i) {
    float4 y = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 gate = *gates(out.m, half, i);
      const float* from = &o[8 * i + 2 * half];
      y.x = fmaf(from[0], gate.x, y.x);
      y.y = fmaf(from[1], gate.y, y.y);
      y.z = fmaf(from[4], gate.z, y.z);
      y.w = fmaf(from[5], gate.w, y.w);
    }
    if constexpr (S::kRank == 4) {
      y.x += __shfl_xor_sync(0xffffffffu, y.x, 4);
      y.y += __shfl_xor_sync(0xffffffffu, y.y, 4);
      y.z += __shfl_xor_sync(0xffffffffu, y.z, 4);
      y.w += __shfl_xor_sync(0xffffffffu, y.w, 4);
    }
    if (S::kRank == 4 && out.own.row % 2 != 0) continue;
    const int p = 16 * i + out.own.column;
    out.put_y(token, p, y.x, y.y);
    out.put_y(token, p + 8, y.z, y.w);
  }
}

// The rows of y that this warp has made.
template <class Out>
__device__ __forceinline__ void store_y(const Out& out) {
  const ChunkPlace& at = out.at;
#pragma unroll
  for (int i = at.lane; i < 2 * Out::Shape::kWarpTokens * kRowPieces; i += kWarpLanes) {
    const int token = at.warp * 2 * Out::Shape::kWarpTokens + i / kRowPieces;
    const int p = i % kRowPieces * 8;
    if (out.begin + token >= at.end) continue;
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(out.job.y) +
                              (out.begin + token) * out.job.y_stride + at.head * kChunkHeadDim +
                              p) = *reinterpret_cast<const uint4*>(out.m.z + swizzled(token, p));
  }
}

template <class Out>
__device__ __forceinline__ void write_chunk(const Out& out, float (&o)[kAccumulators]) {
  using S = typename Out::Shape;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    finish_read_out(out, Weights<S>::row_token(out.own, half), rank_of<S>(out.own, half), half, o);
  }
  wait_for(kGatesMade);
  if constexpr (S::kRank == 1) {
    gate_rows(out, o);
  } else {
    gate_ranks(out, o);
  }
  if constexpr (!Out::kIsWide) {
    __syncwarp();
    store_y(out);
  }
}

// O = decayed Q h + weighted scores X.
template <class S>
__device__ __forceinline__ void read_out(const Fragment& own, const ChunkMemory<S>& m,
                                         float (&o)[kAccumulators]) {
  float scores[kAccumulators];
  wgmma_fence();
  multiply_rows<S>(m.q, m.k, scores);
  wgmma_commit();
  multiply_rows<S>(m.q, m.h, o);
  wgmma_commit();
  wgmma_wait<1>();
  wgmma_hold(scores);
  std::uint32_t weighted[4][4];
  weigh_scores<S>(m, own, scores, weighted);
  wgmma_wait<0>();
  wgmma_hold(o);
  tell(kStateRead);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float decay = m.start_decay[Weights<S>::row_token(own, half)];
#pragma unroll
    for (int j = 0; j < kColumnSteps; ++j) {
      o[4 * j + 2 * half] *= decay;
      o[4 * j + 2 * half + 1] *= decay;
    }
  }
  const std::uint32_t x = shared_address(S::kRank == 1 ? m.x : m.own_x);
  wgmma_hold(o);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    wgmma_k16<1>(o, weighted[step], wgmma_operand(x + step * 2048));
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(o);
}

// Column p of X, times the weights at the chunk's end, for 16 rows: the first factor of h'.
template <class S>
__device__ __forceinline__ void load_faded(const ChunkMemory<S>& m, const Fragment& own, int step,
                                           std::uint32_t (&out)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int row = 16 * step + lane / 16 * 8 + lane % 8;
  const int p = own.row / 16 * 16 + lane / 8 % 2 * 8;
  const std::uint32_t from =
      shared_address(S::kRank == 1 ? m.x : m.own_x) + static_cast<std::uint32_t>(swizzled(row, p));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 fade =
        *reinterpret_cast<const float2*>(&m.fade[16 * step + i / 2 * 8 + own.column]);
    float a;
    float b;
    unpack_bf16(out[i], a, b);
    out[i] = pack_bf16(a * fade.x, b * fade.y);
  }
}

// h' = decay h + (faded X)^T K
template <class S>
__device__ __forceinline__ void update_state(const Fragment& own, const ChunkMemory<S>& m,
                                             State<S>& h) {
  std::uint32_t faded[4][4];
#pragma unroll
  for (int step = 0; step < 4; ++step) load_faded<S>(m, own, step, faded[step]);
  const float decay = m.chunk_decay;
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) h[tile][i] *= decay;
    wgmma_hold(h[tile]);
  }
  wgmma_fence();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_k16<1>(h[tile], faded[step], wgmma_operand(shared_address(m.k[tile]) + step * 2048));
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) wgmma_hold(h[tile]);
}

// A block's way through its chunks. Both warpgroups prepare(); what else they do differs.
template <class S>
struct Walk {
  const ChunkedScanJob& job;
  ChunkMemory<S>& m;
  ChunkPlace at;
  std::uint32_t turns[S::kTurned];  // before the chunk

  __device__ __forceinline__ Walk(const ChunkedScanJob& job_in, ChunkMemory<S>& memory)
      : job(job_in), m(memory), at(job_in) {}

  __device__ __forceinline__ void start() {
    request_shared(at.begin);
    load_head<S>(job, at, m);
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      const int i = j * kWarpLanes + at.lane;
      turns[j] = i < job.sizes.angles ? at.turns(job)[i] : 0;
    }
    __syncthreads();
  }

  // Addresses are cheap to find anew and dear to keep: a register that is spilled costs a trip to
  // the second-level cache, so nothing that depends on the lane may move out of the loop.
  __device__ __forceinline__ void forget_lane() {
    asm volatile("" : "+r"(at.lane), "+r"(at.warp));
  }

  __device__ __forceinline__ void request_shared(int begin) {
    if (begin + S::kTokens <= at.end) {
      request_rows<S, true>(job, at, m, begin);
    } else {
      request_rows<S, false>(job, at, m, begin);
    }
    if (at.warp == 0) request_terms<S>(job, at, m, begin);
    __pipeline_commit();
  }

  // The former chunk's are not read any more.
  __device__ __forceinline__ void request_zx(int begin, bool with_z) {
    request_columns<S::kWarpTokens>(job, at, job.x, m.x, begin, at.warp * S::kWarpTokens);
    if (with_z) {
      request_columns<2 * S::kWarpTokens>(job, at, job.z, m.z, begin, at.warp * 2 * S::kWarpTokens);
    }
    __pipeline_commit();
  }

  // Q, K, X and all weights of the chunk, ready for the products; asks for the next chunk's rows.
  __device__ __forceinline__ void prepare(int begin) {
    const int next = begin + S::kTokens;
    const bool ends_stretch = (next - at.begin) % kGridTokens == 0;
    const int kept = ends_stretch || next >= at.end ? min(next, at.end) - begin - 1 : -1;
    __pipeline_wait_prior(1);  // all but x and z
    __syncwarp();
    Phases<S> phases;
    phases.sum(at, m);
    if (at.warp == 0) weigh_chunk<S>(at.lane, !ends_stretch, m);
    __syncthreads();
    std::uint32_t own_turns[S::kTurned];
    sum_turns<S>(m, at, turns, own_turns, turns);
    rotate_chunk<S>(phases, at, own_turns, kept, m);
    __syncwarp();
    request_shared(next);
    __pipeline_wait_prior(1);  // x and z
    __syncwarp();
    spread_x<S>(job, at, begin, kept, m);
    fence_async_proxy();
    __syncthreads();
  }

  __device__ __forceinline__ void make_outputs() {
    Fragment own;
    for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
      forget_lane();
      own.forget();
      request_zx(begin, true);
      prepare(begin);
      float o[kAccumulators];
      read_out<S>(own, m, o);
      if (job.y_bf16) {
        write_chunk(Outputs<S, false>{job, at, m, own, begin}, o);
      } else {
        write_chunk(Outputs<S, true>{job, at, m, own, begin}, o);
      }
      __syncthreads();
    }
    if (at.warp == 0) store_turns();
  }

  __device__ __forceinline__ void carry_state() {
    Fragment own;
    State<S> h;
    load_state<S>(job, at.ssm(job), own, h);
    for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
      forget_lane();
      own.forget();
      request_zx(begin, false);
      if ((begin - at.begin) % kGridTokens == 0) {
        add_before<S>(m, job.weights[at.head * job.tokens + begin].y, own, h);
      }
      show_state<S>(own, h, m);
      prepare(begin);
      update_state<S>(own, m, h);
      wait_for(kStateRead);
      if (job.y_bf16) {
        make_gates(Outputs<S, false>{job, at, m, own, begin});
      } else {
        make_gates(Outputs<S, true>{job, at, m, own, begin});
      }
      tell(kGatesMade);
      __syncthreads();
    }
    const ChunkPlace end(job);
    store_state<S>(job, own, h, end.ssm(job));
    store_end<S>(job, end, m);
  }

  __device__ __forceinline__ void store_turns() const {
    std::uint32_t* to = ChunkPlace(job).turns(job);
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      const int i = j * kWarpLanes + at.lane;
      if (i < job.sizes.angles) to[i] = turns[j];
    }
  }
};

template <int kState, int kRank, int kTurned>
__global__ void __launch_bounds__(kChunkThreads, 2)
    scan_chunked_kernel(const __grid_constant__ ChunkedScanJob job) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // no other card has these products
  using S = ChunkShape<kState, kRank, kTurned>;
  extern __shared__ __align__(1024) unsigned char memory[];
  Walk<S> walk(job, *reinterpret_cast<ChunkMemory<S>*>(memory));
  if (walk.at.begin >= walk.at.end) return;
  walk.start();
  if (threadIdx.x < kGroupThreads) {
    wgmma_give_registers<kOutputRegisters>();
    walk.make_outputs();
  } else {
    wgmma_take_registers<kStateRegisters>();
    walk.carry_state();
  }
#endif
}

template <int kState, int kRank, int kTurned>
void launch(const ChunkedScanJob& job, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ChunkMemory<ChunkShape<kState, kRank, kTurned>>);
  // Two blocks share a multiprocessor, but where twice as many pairs are rotated as usual.
  static_assert(2 * (kBytes + 1024) <= 228 * 1024 || kTurned == 2);
  const auto kernel = scan_chunked_kernel<kState, kRank, kTurned>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             "mamba3_scan's shared memory");
  kernel<<<grid_blocks(job.sequences * job.sizes.heads), kChunkThreads, kBytes, stream>>>(job);
  check_launch("mamba3_scan: chunks");
}

template <int kState, int kTurned>
void launch_rank(const ChunkedScanJob& job, cudaStream_t stream) {
  switch (job.sizes.rank) {
    case 1:
      return launch<kState, 1, kTurned>(job, stream);
    case 2:
      return launch<kState, 2, kTurned>(job, stream);
    default:
      return launch<kState, 4, kTurned>(job, stream);
  }
}

bool takes_pieces(const void* rows, std::int64_t stride_bytes) {
  return (reinterpret_cast<std::uintptr_t>(rows) | static_cast<std::uintptr_t>(stride_bytes)) %
             kPieceBytes ==
         0;
}

}  // namespace

void mamba3_scan_chunked_cuda(const Mamba3ScanArgs& args, Context& ctx) {
  ChunkedScanJob job{};
  job.sizes = token_sizes(args.dims);
  job.params = args.params;
  job.columns = args.columns;
  job.states = args.states;
  job.cu_seqlens = args.cu_seqlens.data();
  job.slots = args.slots.data();
  job.tokens = args.y.shape[0];
  job.sequences = static_cast<std::int64_t>(args.slots.size());
  job.z = reinterpret_cast<const __nv_bfloat16*>(args.columns.z_bf16);
  job.x = reinterpret_cast<const __nv_bfloat16*>(args.columns.x_bf16);
  job.zx_stride = args.columns.zx_stride;
  job.y = args.y.data;
  job.y_stride = args.y.stride[0];
  job.y_bf16 = args.y.is_bf16();
  check_input(job.y_bf16 == (job.z != nullptr),
              "mamba3_scan: of z, x and y some are bf16 and some fp32; expected one type");
  check_input(!job.y_bf16 || (takes_pieces(job.y, 2 * job.y_stride) &&
                              takes_pieces(job.z, 2 * job.zx_stride) &&
                              takes_pieces(job.x, 2 * job.zx_stride)),
              "mamba3_scan: rows of z, x or y in bf16 do not begin on 16 bytes; expected that");
  check_input(job.tokens < (std::int64_t{1} << 30), "mamba3_scan: ", job.tokens,
              " tokens in one call; expected fewer than 2^30; shorten the segment");
  if (job.tokens == 0 || job.sequences == 0) return;
  ArenaScope scope(ctx.workspace());
  take_chunked_workspace(job, scope);
  job.nothing = job.dt;
  const cudaStream_t stream = stream_of(ctx);
  if (job.z == nullptr) round_columns(job, scope, stream);
  prepare_chunked_tokens(job, stream);
  if (job.sizes.state == 64) return launch_rank<64, 1>(job, stream);
  job.sizes.angles <= kWarpLanes ? launch_rank<128, 1>(job, stream)
                                 : launch_rank<128, 2>(job, stream);
}

}  // namespace mamba3
