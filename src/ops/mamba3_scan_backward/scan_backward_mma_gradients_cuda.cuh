// The gradients of a chunk's Q and K, turned back, and what they are to phases and biases. A warp
// has 16 rows and a quarter of n, and a warpgroup all rows of it.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_chains_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_products_cuda.cuh"

namespace mamba3 {
namespace {

// Rows of BackwardMmaJob's grad_b and grad_c are quarters; in each stands, lane by lane of a quad,
// what the lane has of the eighths. The column of number `at` of a row.
__device__ __forceinline__ int gradient_column(int state, int at) {
  const int quarter = state / 4;
  const int of_lane = quarter / 4;
  const int place = at % quarter;
  return at - place + place % of_lane / 2 * 8 + place / of_lane * 2 + place % 2;
}

template <class S>
struct RowGradients {
  static constexpr int kBlocks = S::kState / kRowTiles / 16;
  static constexpr int kWidth = 16 * kBlocks;
  static constexpr int kEighths = 2 * kBlocks;
  static constexpr unsigned kRankBit = S::kRank == 4 ? 8 : S::kRank == 2 ? 4 : 0;
  static constexpr unsigned kSameRank = 4 * S::kRank;
  static constexpr int kTurnStride = S::kPairs + 4;
  const BackwardMmaJob& job;
  const ChainPlace& at;
  BackwardMemory<S>& m;
  const ChunkDecays<S>& decays;
  unsigned parity;  // of the chunk's number
  Sums<kBlocks> grad_q;
  Sums<kBlocks> grad_k;

  __device__ __forceinline__ RowGradients(const BackwardMmaJob& job_in, const ChainPlace& place,
                                          BackwardMemory<S>& memory, int parity_in)
      : job(job_in), at(place), m(memory), decays(memory.decays[parity_in]), parity(parity_in) {}

  // Starts X E^T, which is to fade, and dQ = decayed dO G^T + dS K.
  __device__ __forceinline__ void start() {
    const Operands in(m);
    wgmma_fence();
    start_multiply<false, kRowTiles, 0, 0, kBlocks>(in.tile(m.x),
                                                    in.rows(m.grad_state, first_column()), grad_k);
    wgmma_commit();
    start_multiply<false, kRowTiles, 0, 0, kBlocks>(in.tile(m.decayed_grad_o),
                                                    in.rows(m.state, first_column()), grad_q);
    start_multiply<true, kRowTiles, 0, 1, kBlocks>(in.tile(m.grad_scores),
                                                   in.columns(m.k, first_column()), grad_q);
    wgmma_commit();
  }
  // Goes on to dK = faded X E^T + dS^T Q.
  __device__ __forceinline__ void fade() {
    wgmma_wait<1>();
    hold<kBlocks>(grad_k);
    scale_rows<kBlocks>(decays.fade[token(0)], decays.fade[token(1)], grad_k);
    hold<kBlocks>(grad_k);
    wgmma_fence();
    const Operands in(m);
    start_multiply<true, kRowTiles, 1, 1, kBlocks>(in.tile(m.grad_scores),
                                                   in.columns(m.q, first_column()), grad_k);
    wgmma_commit();
  }
  // Waits for both; the group that was started behind them goes on.
  __device__ __forceinline__ void wait() {
    wgmma_wait<1>();
    hold<kBlocks>(grad_q);
    hold<kBlocks>(grad_k);
  }

  // Turned back, to what is summed over the sequence and over heads.
  __device__ __forceinline__ void finish(const BackwardChunk& chunk) {
    if (chunk.begin + chunk.tokens == at.end) add_last(chunk);
    turn_back();
    const std::int64_t first_token = at.first_head * job.scan.tokens + chunk.begin;
    const std::int64_t own = kept(first_token * (S::kRank * S::kState) + row(0) * S::kState +
                                  first_column() + 2 * kEighths * (at.lane % 4));
    finish(chunk, grad_q, m.bias_sums[1], job.grad_c + own);
    finish(chunk, grad_k, m.bias_sums[0], job.grad_b + own);
  }

 private:
  __device__ __forceinline__ int tile() const { return static_cast<int>(at.warp % kRowTiles); }
  __device__ __forceinline__ unsigned first_row() const { return at.warp % kRowTiles * 16; }
  __device__ __forceinline__ unsigned first_column() const { return at.warp / kRowTiles * kWidth; }
  __device__ __forceinline__ unsigned row(int i) const { return first_row() + at.lane / 4 + 8 * i; }
  __device__ __forceinline__ unsigned token(int i) const { return row(i) / S::kRank; }
  // Of a lane's pairs those of an eighth are neighbours.
  __device__ __forceinline__ unsigned first_pair(int eighth) const {
    return first_column() / 2 + 4 * eighth;
  }
  __device__ __forceinline__ unsigned pair_of(int eighth) const {
    return first_pair(eighth) + at.lane % 4;
  }

  // The state's k is that of the last token.
  __device__ __forceinline__ void add_last(const BackwardChunk& chunk) {
    const Mamba3StateGradients& grads = job.grad_states;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (static_cast<int>(token(i)) != chunk.tokens - 1) continue;
      const std::int64_t r = row(i) % S::kRank;
      const float* k =
          grads.k + at.slot * grads.k_stride + (r * job.scan.sizes.heads + at.head) * S::kState;
#pragma unroll
      for (int eighth = 0; eighth < kEighths; ++eighth) {
        const float2 own = canonical_pair(job.scan.sizes, k, static_cast<int>(pair_of(eighth)));
        grad_k[eighth][2 * i] += own.x;
        grad_k[eighth][2 * i + 1] += own.y;
      }
    }
  }

  // Pairs of an eighth are turned all or none.
  __device__ __forceinline__ void turn_back() {
    const int angles = job.scan.sizes.angles;
    if (first_pair(0) >= angles) return;
    const __half2* cos_sin = m.cos_sin(0, angles);
    const unsigned first[] = {kept(turn_place(0)), kept(turn_place(1))};
    const Factor q(m, m.q, at.lane), k(m, m.k, at.lane);
    float turns[2 * kEighths] = {};  // [row, eighth]: gradients of the phases
#pragma unroll
    for (int begin = 0; begin < kEighths; begin += 2) {
      std::uint32_t of_q[4], of_k[4];  // [eighth, row]
      q.left(first_row(), first_column() + 8 * begin, of_q);
      k.left(first_row(), first_column() + 8 * begin, of_k);
#pragma unroll
      for (int eighth = begin; eighth < begin + 2; ++eighth) {
        if (first_pair(eighth) >= angles) break;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 rotation = __half22float2(cos_sin[first[i] + 4 * eighth]);
          const int own = 2 * (eighth - begin) + i;
          turns[i * kEighths + eighth] =
              turn_pair_back(wide_pair(of_q[own]), rotation, &grad_q[eighth][2 * i]) +
              turn_pair_back(wide_pair(of_k[own]), rotation, &grad_k[eighth][2 * i]);
        }
      }
    }
    tell_turns(turns);
  }
  // The phases' gradients, summed over ranks.
  __device__ __forceinline__ void tell_turns(float (&turns)[2 * kEighths]) const {
    constexpr int kCount = 2 * kEighths;
    sum_lanes<kRankBit, 4, kCount>(turns, at.lane);
    const int first = first_of_lane<kRankBit, 4, kCount>(at.lane);
#pragma unroll
    for (int left = 0; left < kCount / S::kRank; ++left) {
      const int i = (first + left) / kEighths, eighth = (first + left) % kEighths;
      const unsigned pair = pair_of(eighth);
      if (pair < job.scan.sizes.angles) m.grad_turns[token(i) * kTurnStride + pair] = turns[left];
    }
  }
  // Among both chunks' rotations that of the first pair in row i.
  __device__ __forceinline__ unsigned turn_place(int i) const {
    return (parity * S::kTokens + token(i)) * turn_stride(job.scan.sizes.angles) + pair_of(0);
  }
  // `v` is what was turned. Returns the gradient of its phase.
  static __device__ __forceinline__ float turn_pair_back(float2 v, float2 rotation, float* grad) {
    const float a = grad[0], b = grad[1];
    grad[0] = fmaf(b, rotation.y, a * rotation.x);
    grad[1] = fmaf(-a, rotation.y, b * rotation.x);
    return b * v.x - a * v.y;
  }

  __device__ __forceinline__ void finish(const BackwardChunk& chunk, const Sums<kBlocks>& d,
                                         float (*bias_sums)[S::kRank][S::kState + S::kSumPad],
                                         __nv_bfloat16* to) const {
    keep_sums(d, bias_sums[tile()][at.lane / 4 % S::kRank]);
    write(chunk, d, to);
  }

  __device__ __forceinline__ void keep_sums(const Sums<kBlocks>& d, float* to) const {
    constexpr int kCount = 2 * kEighths;
    float sums[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] = d[i / 2][i % 2] + d[i / 2][2 + i % 2];
    sum_lanes<16, kSameRank, kCount>(sums, at.lane);
    if (!tells<16, kSameRank, kCount>(at.lane)) return;
    const int first = first_of_lane<16, kSameRank, kCount>(at.lane);
    add_sums<LaneSums<16, kSameRank, kCount>::kLeft>(sums, first,
                                                     to + first_column() + at.lane % 4 * 2);
  }

  // What a thread has of a row lies together: see gradient_column().
  __device__ __forceinline__ void write(const BackwardChunk& chunk, const Sums<kBlocks>& d,
                                        __nv_bfloat16* to) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (static_cast<int>(token(i)) >= chunk.tokens) continue;
      std::uint32_t words[kEighths];
#pragma unroll
      for (int eighth = 0; eighth < kEighths; ++eighth) {
        words[eighth] = pack_bf16(d[eighth][2 * i], d[eighth][2 * i + 1]);
      }
      put_words(words, at.head > at.first_head, to + 8 * i * S::kState);
    }
  }
};

}  // namespace
}  // namespace mamba3
