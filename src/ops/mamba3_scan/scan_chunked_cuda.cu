// One block walks one head of one sequence, chunk by chunk. docs/SEMANTICS.md derives the merged
// form: in a chunk
//   O = (Q K^T with decays and weights) X + decayed Q h,    h' = decay h + (faded X)^T K
// are four matrix products in bf16 with fp32 sums; weights are applied to the scores in fp32. One
// warpgroup makes O and y; the other has h in its accumulators, and makes the gates.
#include <algorithm>
#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_cuda.h"
#include "ops/mamba3_scan/scan_chunked_outputs_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_rotate_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_turns_cuda.cuh"

// Code for other cards than Hopper has none of what the kernel calls.
#pragma nv_diag_suppress 177

namespace mamba3 {
namespace {

// Of a thread; together those of 512 threads with 128 each.
constexpr int kOutputRegisters = 120;
constexpr int kStateRegisters = 152;
constexpr int kRotatingRegisters = 120;

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

// Column p of X, times the weights at the chunk's end, for 16 rows: the first factor of h'.
template <class S>
__device__ __forceinline__ void load_faded(const ChunkStage<S>& stage, const Fragment& own, int step,
                                           std::uint32_t (&out)[4]) {
  const unsigned lane = threadIdx.x % kWarpLanes;
  const unsigned row = 16 * step + lane / 16 * 8 + lane % 8;
  const unsigned p = own.row / 16 * 16 + lane / 8 % 2 * 8;
  const std::uint32_t from = stage.x_rows() + swizzled(row, p);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 fade =
        *reinterpret_cast<const float2*>(&stage.fade[16 * step + i / 2 * 8 + own.column]);
    float a;
    float b;
    unpack_bf16(out[i], a, b);
    out[i] = pack_bf16(a * fade.x, b * fade.y);
  }
}

// h' = decay h + (faded X)^T K
template <class S>
__device__ __forceinline__ void update_state(const Fragment& own, const ChunkStage<S>& stage,
                                             State<S>& h) {
  std::uint32_t faded[4][4];
#pragma unroll
  for (int step = 0; step < 4; ++step) load_faded<S>(stage, own, step, faded[step]);
  const float decay = stage.chunk_decay;
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < kAccumulators; ++i) h[tile][i] *= decay;
    wgmma_hold(h[tile]);
  }
  const std::uint64_t k = wgmma_operand(shared_address(stage.tiles[0].k));
  wgmma_fence();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_k16<1>(h[tile], faded[step],
                   wgmma_further(k, tile * kNextTile + step * 16 * kTileRowBytes));
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) wgmma_hold(h[tile]);
}

// Addresses are cheap to find anew and dear to keep: a register that is spilled costs a trip to
// the second-level cache, so nothing that depends on the lane may move out of a loop over chunks.
__device__ __forceinline__ void forget_lane(ChunkPlace& at) {
  asm volatile("" : "+r"(at.lane), "+r"(at.warp));
}

// The token of a chunk that is kept in fp32, or -1.
template <class S>
__device__ __forceinline__ int kept_token(const ChunkPlace& at, int begin) {
  const int next = begin + S::kTokens;
  const bool ends = (next - at.begin) % kGridTokens == 0 || next >= at.end;
  return ends ? min(next, at.end) - begin - 1 : -1;
}

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
    make_gates(job, at, first, m, stage);
    fence_async_proxy();
    arrive_warp(&m.filled[s], at.lane);
    if (goes_on) request_warp_columns(job, at, first + S::kTokens, columns);
    cursor.next();
  }
}

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

// Which warp of the group with the state does what no other does.
constexpr int kWeighingWarp = 1;
constexpr int kKeepingWarp = 2;

template <class S>
struct StateCarrier {
  const ChunkedScanJob& job;
  ChunkMemory<S>& m;
  ChunkPlace at;
  Fragment own;
  Decays<S> decays;  // of the chunk after the one that was begun
  Turner<S> turner;
  State<S> h;

  __device__ __forceinline__ StateCarrier(const ChunkedScanJob& job_in, const ChunkPlace& place,
                                          ChunkMemory<S>& memory)
      : job(job_in), m(memory), at(place), turner(job_in, place) {
    load_state<S>(job, own, at.ssm(job), h);
    if (at.warp % kGroupWarps == kWeighingWarp) decays.load(job, at, at.begin);
  }

  __device__ __forceinline__ void request_turns(int begin) {
    if (begin < at.end) turner.request(job, at, begin, m);
    __pipeline_commit();
  }

  // Of the chunk from `begin` on, whose request is not the last one but kNewer.
  template <int kNewer>
  __device__ __forceinline__ void make_turns(int begin, int stage) {
    __pipeline_wait_prior(kNewer);
    __syncwarp();
    if (begin < at.end) {
      turner.make(at, m, m.turns[stage]);
      arrive_warp(&m.turned[stage], at.lane);
    }
    request_turns(begin + S::kTokens);
  }

  // The state before the chunk from `begin` on, x and weights go into its stage. finish_chunk says
  // so when x is there.
  __device__ __forceinline__ void begin_chunk(int begin, const TokenBefore<S>& before,
                                              const StageCursor& cursor) {
    if ((begin - at.begin) % kGridTokens == 0) {
      add_before<S>(m, before, job.weights[at.head * job.tokens + begin].y, own, h);
    }
    barrier_wait(&m.emptied[cursor.stage], cursor.parity ^ 1);
    ChunkStage<S>& stage = m.stages[cursor.stage];
    request_x(job, at, begin, stage);
    show_state<S>(own, h, stage);
    fence_async_proxy();
    arrive_warp(&m.shown[cursor.stage], at.lane);
    if (at.warp % kGroupWarps != kWeighingWarp) return;
    const int next = begin + S::kTokens;
    decays.weigh(at.lane, (next - at.begin) % kGridTokens != 0, stage);
    decays.load(job, at, next);
  }

  // Of two requests, of x and then of what turns, the first is waited for.
  __device__ __forceinline__ void finish_chunk(int stage) {
    __pipeline_wait_prior(1);
    fence_async_proxy();
    arrive_warp(&m.filled[stage], at.lane);
  }

  __device__ __forceinline__ void keep_last_x(int begin, ChunkStage<S>& stage) {
    const int kept = kept_token<S>(at, begin);
    if (__builtin_expect(kept < 0, 1)) return;
    if (at.warp % kGroupWarps == kKeepingWarp) keep_x(job, at, begin, kept, stage);
    sync_state();
  }

  __device__ __forceinline__ void run() {
    StageCursor cursor;
    request_turns(at.begin);
    make_turns<0>(at.begin, 0);
    begin_chunk(at.begin, m.before, cursor);
    make_turns<1>(at.begin + S::kTokens, 1);
    finish_chunk(0);
    int last = 0;
    for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
      forget_lane(at);
      own.forget();
      const int s = last = cursor.uniform_stage();
      ChunkStage<S>& stage = m.stages[s];
      barrier_wait(&m.filled[s], cursor.parity);
      update_state<S>(own, stage, h);
      keep_last_x(begin, stage);
      cursor.next();
      const int next = begin + S::kTokens;
      if (next < at.end) begin_chunk(next, stage.kept, cursor);
      arrive_warp(&m.emptied[s], at.lane);
      if (next >= at.end) break;
      make_turns<1>(next + S::kTokens, s);
      finish_chunk(cursor.stage);
    }
    const ChunkPlace end(job);
    store_state<S>(job, own, h, end.ssm(job));
    store_end<S>(job, end, m.stages[last].kept);
    turner.store(job, end);
  }
};

template <int kState, int kRank, int kTurned>
__global__ void __launch_bounds__(kChunkThreads, 1)
    scan_chunked_kernel(const __grid_constant__ ChunkedScanJob job) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // no other card has these products
  using S = ChunkShape<kState, kRank, kTurned>;
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& m = *reinterpret_cast<ChunkMemory<S>*>(memory);
  const ChunkPlace at(job);
  if (at.begin >= at.end) return;
  load_head<S>(job, at, m);
  if (threadIdx.x == 0) m.init_barriers();
  __syncthreads();
  if (threadIdx.x < kStateThread) {
    wgmma_give_registers<kOutputRegisters>();
    make_outputs(job, at, m);
  } else if (threadIdx.x < kRotatingThread) {
    wgmma_take_registers<kStateRegisters>();
    StateCarrier<S>(job, at, m).run();
  } else {
    wgmma_give_registers<kRotatingRegisters>();
    rotate_chunks(job, at, m);
  }
#endif
}

template <int kState, int kRank, int kTurned>
void launch(const ChunkedScanJob& job, cudaStream_t stream) {
  constexpr int kBytes = sizeof(ChunkMemory<ChunkShape<kState, kRank, kTurned>>);
  static_assert(kBytes <= 227 * 1024);
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
