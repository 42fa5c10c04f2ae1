// The state of the chunked scan, in the accumulators of one warpgroup, which also makes phases and
// weights of the next chunks.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstddef>
#include <cstdint>

#include "device/gate.cuh"
#include "ops/mamba3_scan/scan_chunked_decays_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_products_cuda.cuh"
#include "ops/mamba3_scan/scan_chunked_turns_cuda.cuh"

namespace mamba3 {
namespace {

// Column p of X, times the weights at the chunk's end, for 16 rows: where x is not spread over
// ranks, nobody else has faded it.
template <class S>
__device__ __forceinline__ void load_faded(const ChunkStage<S>& stage,
                                           const ChunkWeights<S>& weights, const Fragment& own,
                                           int step, std::uint32_t (&out)[4]) {
  const unsigned lane = threadIdx.x % kWarpLanes;
  const unsigned row = 16 * step + lane / 16 * 8 + lane % 8;
  const unsigned p = own.row / 16 * 16 + lane / 8 % 2 * 8;
  const std::uint32_t from = shared_address(stage.x) + swizzled(row, p);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 fade =
        *reinterpret_cast<const float2*>(&weights.fade[16 * step + i / 2 * 8 + own.column]);
    float a;
    float b;
    unpack_bf16(out[i], a, b);
    out[i] = pack_bf16(a * fade.x, b * fade.y);
  }
}

// (faded X)^T K, added to what is left of h: X from memory, or from registers.
template <class S>
__device__ __forceinline__ void add_tokens(const ChunkStage<S>& stage, State<S>& h) {
  static_assert(offsetof(ChunkStage<S>, faded_x) % 1024 == 0);  // an operand's place
  const std::uint64_t x = wgmma_operand(shared_address(stage.faded_x));
  const std::uint64_t k = wgmma_operand(shared_address(stage.tiles[0].k), kNextTile);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    constexpr int kStep = 16 * kTileRowBytes;
    wgmma_k16<1, 1>(h, wgmma_further(x, step * kStep), wgmma_further(k, step * kStep), true);
  }
}

template <class S>
__device__ __forceinline__ void add_tokens(const ChunkStage<S>& stage,
                                           const std::uint32_t (&faded)[4][4], State<S>& h) {
  const std::uint64_t k = wgmma_operand(shared_address(stage.tiles[0].k));
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      wgmma_k16<1>(h[tile], faded[step],
                   wgmma_further(k, tile * kNextTile + step * 16 * kTileRowBytes));
    }
  }
}

// h' = decay h + (faded X)^T K. Calls `meanwhile` while the product is made.
template <class S, class F>
__device__ __forceinline__ void update_state(const Fragment& own, const ChunkStage<S>& stage,
                                             const ChunkWeights<S>& weights, State<S>& h,
                                             const F& meanwhile) {
  std::uint32_t faded[4][4];
  if constexpr (S::kRank == 1) {
#pragma unroll
    for (int step = 0; step < 4; ++step) load_faded<S>(stage, weights, own, step, faded[step]);
  }
  const float decay = weights.chunk_decay;
  if (__any_sync(0xffffffffu, decay != 1)) {
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < kAccumulators; ++i) h[tile][i] *= decay;
    }
  }
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) wgmma_hold(h[tile]);
  wgmma_fence();
  if constexpr (S::kRank == 1) {
    add_tokens<S>(stage, faded, h);
  } else {
    add_tokens<S>(stage, h);
  }
  wgmma_commit();
  meanwhile();
  wgmma_wait<0>();
#pragma unroll
  for (int tile = 0; tile < S::kTiles; ++tile) wgmma_hold(h[tile]);
}

// Which warps of the group with the state do what no other does: the last two make the weights, for
// where there are several ranks they sum no phases.
constexpr unsigned kPairWeighingWarp = 2;
constexpr unsigned kStateWeighingWarp = 3;

// The warpgroup's way through the chunks of a sequence. The state before a chunk is shown when the
// chunk before is in it; phases and weights are made one chunk earlier still.
template <class S>
struct StateCarrier {
  // Products in double wait until the tensor cores have none. With several ranks they come behind
  // the state's product, so that K is free before them; with one, of which a chunk has many tokens,
  // there are so many that they are made meanwhile.
  static constexpr bool kPhasesLast = S::kRank > 1;
  // Where the weights of a stretch's last chunk are.
  static constexpr int kStretchEnd = kWeightStages - 1;
  static_assert(kGridTokens / S::kTokens % kWeightStages == 0);
  const ChunkedScanJob& job;
  ChunkMemory<S>& m;
  ChunkPlace at;
  Fragment own;
  Decays<S> decays;  // of the chunk whose weights are made next
  Turner<S> turner;
  State<S> h;

  __device__ __forceinline__ StateCarrier(const ChunkedScanJob& job_in, const ChunkPlace& place,
                                          ChunkMemory<S>& memory)
      : job(job_in),
        m(memory),
        at(place),
        turner(job_in, place, start_state(job_in, memory.piece).turns) {
    at.lane = held(at.lane);
    at.warp = uniform(at.warp);
    load_state<S>(job, own, start_state(job, m.piece).ssm, h);
    if (weighs()) decays.start(job, at);
  }

  __device__ __forceinline__ bool weighs() const {
    const unsigned warp = at.warp % kGroupWarps;
    return warp == kPairWeighingWarp || warp == kStateWeighingWarp;
  }

  __device__ __forceinline__ bool sums_phases() const {
    return at.warp % kGroupWarps < S::kTurningWarps;
  }

  __device__ __forceinline__ void request_turns(int begin) {
    if (begin < at.end) turner.request(job, at, begin, m);
    __pipeline_commit();
  }

  // Weights of the chunk from `begin` on.
  __device__ __forceinline__ void make_weights(int begin, ChunkWeights<S>& to) {
    if (begin >= at.end || !weighs()) return;
    const int next = begin + S::kTokens;
    const int end = min(next, at.end);
    const bool last_joins = (next - at.begin) % kGridTokens != 0;
    if (at.warp % kGroupWarps == kPairWeighingWarp) {
      decays.weigh_pairs(at.lane, begin, end, last_joins, to);
    } else {
      decays.weigh_state(at.lane, begin, end, last_joins, kept_token<S>(at, begin) >= 0, to);
    }
    decays.load(at, next);
  }

  // Its phases, which were requested; its weights are there.
  __device__ __forceinline__ void make_phases(int begin, int stage) {
    if (begin >= at.end) return;
    if (sums_phases()) {
      __pipeline_wait_prior(0);
      __syncwarp();
      turner.make(at, m, m.turns[stage]);
    }
    arrive_warp(&m.turned[stage], at.lane);
    if (sums_phases()) request_turns(begin + S::kTokens);
  }

  // The state before the chunk whose stage that is.
  __device__ __forceinline__ void show(const StageCursor& cursor) {
    barrier_wait(&m.emptied[cursor.stage], cursor.parity ^ 1);
    if constexpr (!S::kOutputs) return;
    show_state<S>(at.lane, own, h, m.stages[cursor.stage]);
    arrive_warp(&m.shown[cursor.stage], at.lane);
  }

  __device__ __forceinline__ void run() {
    StageCursor cursor;
    if (sums_phases()) request_turns(at.begin);
#pragma unroll 1
    for (int i = 0; i < kStages; ++i) {
      make_weights(at.begin + i * S::kTokens, m.weights[i]);
      make_phases(at.begin + i * S::kTokens, i);
    }
    const float carry = job.weights[at.head * job.tokens + at.begin].y;
    add_before<S>(m, m.stages[0].before(), carry, own, h);
    sync_state();
    show(cursor);
    int last = 0;
    for (int begin = at.begin; begin < at.end; begin += S::kTokens) {
      forget_lane(at);
      own.forget();
      const int s = last = cursor.uniform_stage();
      ChunkStage<S>& stage = m.stages[s];
      barrier_wait(&m.filled[s], cursor.parity);
      fence_async_proxy();
      const unsigned weights = cursor.weights();
      const int ahead = begin + kStages * S::kTokens;
      update_state<S>(own, stage, m.weights[weights], h, [&] {
        make_weights(ahead, m.weights[weights ^ kStages]);
        if (!kPhasesLast) make_phases(ahead, s);
      });
      const int next = begin + S::kTokens;
      if (next < at.end && (next - at.begin) % kGridTokens == 0) {
        add_before<S>(m, m.kept[s], m.weights[kStretchEnd].carry, own, h);
      }
      cursor.next();
      arrive_warp(&m.emptied[s], at.lane);
      if (kPhasesLast) make_phases(ahead, s);
      if (next < at.end) show(cursor);
    }
    const ChunkPlace place(job, m.piece);
    const HeadState end = end_state(job, m.piece);
    store_state<S>(job, own, h, end.ssm);
    store_end<S>(job, end, m.kept[last]);
    if (sums_phases()) turner.store(job, place, end.turns);
    if (const int gate = m.piece.gate; gate < 0) {
      sync_state();
      if (threadIdx.x == kStateThread) open_gate(job.gates - gate);
    }
  }
};

}  // namespace
}  // namespace mamba3
