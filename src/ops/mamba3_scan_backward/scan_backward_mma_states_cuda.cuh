// The pass forward: the state at the start of each chunk, with the boundary term in it
// (docs/SEMANTICS.md, section 9), and cosine and sine of every token's phases.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_products_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_rows_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kStatesThreads = 256;
constexpr int kTurnGroups = kStatesThreads / kWarpLanes;  // of a chunk's tokens, a warp each

// Behind it stands cos_sin[kTokens][s]; without angles one that is read and not used.
template <class S>
struct StatesMemory : KeyMemory<S> {
  KeyInputs<S> keys[2];               // by the parity of a chunk's number, as what follows
  std::uint32_t turns[2][S::kPairs];  // before the chunk
  std::uint32_t group_turns[kTurnGroups][S::kPairs];
  float group_broken[kTurnGroups][S::kPairs];  // 0, or NaN where a step is not finite

  __device__ __forceinline__ __half2* cos_sin() { return reinterpret_cast<__half2*>(this + 1); }
  static __host__ __device__ int bytes(int angles) {
    return static_cast<int>(sizeof(StatesMemory)) +
           (S::kTokens * angles + (angles == 0 ? 1 : 0)) * static_cast<int>(sizeof(__half2));
  }
};

// What a warp's tokens turn: a lane has one angle or two.
template <class S>
struct GroupTurns {
  static constexpr int kOwn = S::kTokens / kTurnGroups;
  static constexpr int kAngles = (S::kPairs + kWarpLanes - 1) / kWarpLanes;
  double dt[kOwn];
  double half_tanh[kAngles][kOwn];
  std::uint32_t turned[kAngles][kOwn];  // from the group's start on

  // Long before sum().
  __device__ __forceinline__ void load(const BackwardMmaJob& job, const MmaPlace& at,
                                       const BackwardChunk& chunk) {
    const int angles = job.scan.sizes.angles;
    const int first = static_cast<int>(at.warp) * kOwn;
    const double* from_dt = job.scan.turning + at.head * job.scan.tokens + chunk.begin + first;
    const double* from = job.scan.half_tanh + std::int64_t{chunk.begin + first} * angles + at.lane;
#pragma unroll
    for (int t = 0; t < kOwn; ++t) {
      const bool is = first + t < chunk.tokens;
      dt[t] = is ? __ldg(from_dt + t) : 0.0;
#pragma unroll
      for (int i = 0; i < kAngles; ++i) {
        const bool turns = is && i * kWarpLanes + static_cast<int>(at.lane) < angles;
        half_tanh[i][t] = turns ? __ldg(from + t * angles + i * kWarpLanes) : 0.0;
      }
    }
  }

  __device__ __forceinline__ void sum(const MmaPlace& at, int angles, StatesMemory<S>& m) {
#pragma unroll
    for (int i = 0; i < kAngles; ++i) {
      const int angle = i * kWarpLanes + static_cast<int>(at.lane);
      if (angle >= angles) break;
      std::uint32_t sum = 0;
      float broken = 0;
#pragma unroll
      for (int t = 0; t < kOwn; ++t) {
        bool finite;
        turned[i][t] = sum += turns_moved(half_tanh[i][t], dt[t], finite);
        if (!finite) broken = nanf("");
      }
      m.group_turns[at.warp][angle] = sum;
      m.group_broken[at.warp][angle] = broken;
    }
  }

  // When all sums are there.
  __device__ __forceinline__ void rotate(const BackwardMmaJob& job, const MmaPlace& at,
                                         const BackwardChunk& chunk, int parity,
                                         StatesMemory<S>& m) const {
    const int angles = job.scan.sizes.angles;
    const auto group = static_cast<int>(at.warp);
    const int stride = turn_stride(angles);
    __half2* out = job.cos_sin + (at.head * job.scan.tokens + chunk.begin) * stride;
#pragma unroll
    for (int i = 0; i < kAngles; ++i) {
      const int angle = i * kWarpLanes + static_cast<int>(at.lane);
      if (angle >= angles) break;
      std::uint32_t before = m.turns[parity][angle];
      for (int g = 0; g < group; ++g) before += m.group_turns[g][angle];
      const float broken = m.group_broken[group][angle];
#pragma unroll
      for (int t = 0; t < kOwn; ++t) {
        const int token = group * kOwn + t;
        const float2 rotation = fast_cos_sin(before + turned[i][t], broken);
        const __half2 rounded = __floats2half2_rn(rotation.x, rotation.y);
        m.cos_sin()[token * angles + angle] = rounded;
        if (token < chunk.tokens) out[token * stride + angle] = rounded;
      }
      if (group == kTurnGroups - 1) m.turns[parity ^ 1][angle] = before + turned[i][kOwn - 1];
    }
  }
};

// What is asked for long before a chunk's turn.
template <class S>
__device__ __forceinline__ void request_keys(const BackwardMmaJob& job, const MmaPlace& at,
                                             const BackwardChunk& chunk, int parity,
                                             StatesMemory<S>& m) {
  if (at.warp == 0 && elect_lane()) {
    barrier_arrive_expecting(&m.rows_came,
                             chunk.tokens * 2 * S::kRank * S::kState + ChunkDecays<S>::kBytes);
    request_raw<S>(job, at, chunk, job.scan.in_b, m.keys[parity].b, &m.rows_came);
    bulk_copy(&m.decays[parity], decays_of<S>(job, at, chunk), ChunkDecays<S>::kBytes,
              &m.rows_came);
  }
  request_columns<kStatesThreads, S>(at, chunk, job.scan.x, job.scan.zx_stride, m.keys[parity].x);
  __pipeline_commit();
}

// The state that a sequence starts from, with the carried term of the token before it.
template <class S>
__device__ __forceinline__ void load_start(const BackwardMmaJob& job, const MmaPlace& at,
                                           const StateTile<kStatesThreads, S>& tile,
                                           Sums<StateTile<kStatesThreads, S>::kBlocks>& h) {
  const TokenSizes& sizes = job.scan.sizes;
  const Mamba3States& states = job.scan.states;
  const float* ssm = states.ssm + at.slot * states.ssm_stride +
                     std::int64_t{at.head} * S::kState * kBackwardHeadDim;
  const float* k = states.k + at.slot * states.k_stride + std::int64_t{at.head} * S::kState;
  const float* v = states.v + at.slot * states.v_stride + at.head * kBackwardHeadDim;
  const float carry = job.scan.weights[at.head * job.scan.tokens + at.begin].y;
  const float* mimo_x =
      S::kRank == 1 ? nullptr
                    : job.scan.params.mimo_x + std::int64_t{at.head} * S::kRank * kBackwardHeadDim;
  tile.each(h, [&](float& a, float& b, unsigned n, unsigned column) {
    const unsigned p = mingled(column);
    const int place = place_of(sizes, static_cast<int>(n));
    const float* from = ssm + place * kBackwardHeadDim + p;
    a = from[0];
    b = from[1];
#pragma unroll
    for (int r = 0; r < S::kRank; ++r) {
      const float key = carry * k[std::int64_t{r} * sizes.heads * S::kState + place];
      const float* weight = mimo_x + r * kBackwardHeadDim + p;
      a = fmaf(key, S::kRank == 1 ? v[p] : v[p] * weight[0], a);
      b = fmaf(key, S::kRank == 1 ? v[p + 1] : v[p + 1] * weight[1], b);
    }
  });
}

// In bf16: what a thread has of four eighths is a piece of a row, for X lies as mingled() has it.
template <class S>
__device__ __forceinline__ void store_state(__nv_bfloat16* to,
                                            const StateTile<kStatesThreads, S>& tile,
                                            const Sums<StateTile<kStatesThreads, S>::kBlocks>& h) {
  constexpr int kEighths = 2 * StateTile<kStatesThreads, S>::kBlocks;
  const unsigned byte = swizzled(tile.row + tile.lane / 4, tile.column + 8 * (tile.lane % 4));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int first = 0; first < kEighths; first += 4) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = pack_bf16(h[first + i][2 * half], h[first + i][2 * half + 1]);
      }
      *reinterpret_cast<uint4*>(reinterpret_cast<unsigned char*>(to) +
                                further(byte, 8 * half, first)) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kStatesThreads, 2)
    backward_states_kernel(const __grid_constant__ BackwardMmaJob job) {
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& m = *reinterpret_cast<StatesMemory<S>*>(memory);
  using Tile = StateTile<kStatesThreads, S>;
  const WarpPlace at(job.scan);
  if (at.begin >= at.end) return;
  const TokenSizes& sizes = job.scan.sizes;
  const int chunks = (at.end - at.begin + S::kTokens - 1) / S::kTokens;
  open_memory<kStatesThreads>(memory, StatesMemory<S>::bytes(sizes.angles), m);
  BackwardChunk chunk = BackwardChunk::at<S>(at, 0);
  request_keys(job, at, chunk, 0, m);
  load_pairs<kStatesThreads, S>(sizes, job.scan.params.in_b_norm, job.scan.params.in_b_bias,
                                at.head, m.b_norm, m.b_bias);
  load_rank_weights<kStatesThreads, S>(job.scan.params.mimo_x, at.head, m.mimo_x);
  for (int i = static_cast<int>(threadIdx.x); i < sizes.angles; i += kStatesThreads) {
    m.turns[0][i] = job.scan.states.turns[at.slot * job.scan.states.turns_stride +
                                          std::int64_t{at.head} * sizes.angles + i];
  }
  const Tile tile(at);
  Sums<Tile::kBlocks> h;
  load_start<S>(job, at, tile, h);
  GroupTurns<S> turns;
  turns.load(job, at, chunk);
  for (int index = 0; index < chunks; ++index) {
    const int parity = index & 1;
    const bool last = index + 1 == chunks;
    const BackwardChunk next = BackwardChunk::at<S>(at, index + 1);
    turns.sum(at, sizes.angles, m);
    store_state<S>(
        job.states + (chunk.number * sizes.heads + at.head) * (S::kState * kBackwardHeadDim), tile,
        h);
    __pipeline_wait_prior(0);
    barrier_wait(&m.rows_came, parity);
    __syncthreads();
    if (!last) request_keys(job, at, next, parity ^ 1, m);
    turns.rotate(job, at, chunk, parity, m);
    if (last) return;  // nobody reads the state behind it
    turns.load(job, at, next);
    const KeyInputs<S>& keys = m.keys[parity];
    spread_faded_x<kStatesThreads>(keys.x, m.decays[parity].fade, m);
    __syncthreads();
    make_rows<kStatesThreads, S>(at, m.cos_sin(), sizes.angles, sizes.angles,
                                 Rows<S>{keys.b, m.b_norm, m.b_bias, m.k});
    fence_async_proxy();
    __syncthreads();
    tile.start_fold(m.decays[parity].whole, Operands(m), m.k, m.x, h);
    tile.finish_fold(h);
    chunk = next;
  }
}

}  // namespace
}  // namespace mamba3
