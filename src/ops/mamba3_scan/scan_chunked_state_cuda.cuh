// The state of the chunked scan, in the accumulators of one warpgroup, which also brings x, decays
// and phases of the next chunks.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "ops/mamba3_scan/scan_chunked_products_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_turns_cuda.cuh"

namespace mamba3 {
namespace {

// Column p of X, times the weights at the chunk's end, for 16 rows: the first factor of h'.
template <class S>
__device__ __forceinline__ void load_faded(const ChunkStage<S>& stage, const Fragment& own,
                                           int step, std::uint32_t (&out)[4]) {
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

// Which warp of the group with the state does what no other does.
constexpr int kWeighingWarp = 1;
constexpr int kKeepingWarp = 2;

// The warpgroup's way through the chunks of a sequence. A chunk is begun when the one before is
// taken into the state; its phases are made one chunk earlier still.
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
    load_state<S>(job, own, start_state(job, at).ssm, h);
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
    if constexpr (S::kOutputs) {
      show_state<S>(own, h, stage);
      fence_async_proxy();
      arrive_warp(&m.shown[cursor.stage], at.lane);
    }
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
    const ChunkPlace place(job);
    const HeadState end = end_state(job, place);
    store_state<S>(job, own, h, end.ssm);
    store_end<S>(job, end, m.stages[last].kept);
    turner.store(job, place, end.turns);
  }
};

}  // namespace
}  // namespace mamba3
