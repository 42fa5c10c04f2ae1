// The read-outs of a chunk and the gradients of its x and z: what the gate and the skip take part
// in. A warp has 16 rows and 16 columns of the head.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan_backward/scan_backward_mma_products_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_mma_rows_cuda.cuh"

namespace mamba3 {
namespace {

static_assert(kBackwardWarps == kRowTiles * kRowTiles);

// Pairs of a row, the first of them at `to` and each eight columns behind the one before.
template <int kPairs>
__device__ __forceinline__ void put_pairs(float* to, const float* pairs) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    to[8 * i] = pairs[2 * i];
    to[8 * i + 1] = pairs[2 * i + 1];
  }
}
template <int kPairs>
__device__ __forceinline__ void put_pairs(__nv_bfloat16* to, const float* pairs) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    *reinterpret_cast<std::uint32_t*>(to + 8 * i) = pack_bf16(pairs[2 * i], pairs[2 * i + 1]);
  }
}

template <class S>
struct HeadOutputs {
  static constexpr unsigned kRankBit = S::kRank == 4 ? 8 : S::kRank == 2 ? 4 : 0;
  static constexpr unsigned kSameRank = 4 * S::kRank;  // lanes so far apart have rows of one rank
  static constexpr int kGateRow = kBackwardHeadDim + S::kSumPad;
  const BackwardMmaJob& job;
  const MmaPlace& at;
  BackwardMemory<S>& m;
  unsigned row;     // the thread's first; the other is 8 further
  unsigned column;  // the thread's first; the others are the next, and 8 further
  int r;
  float skip;
  float skip_sum = 0;
  float common;      // of a row, with the state of the warp's product
  Sums<2> products;  // Q G, then O; K E, then the gradient of X

  __device__ __forceinline__ HeadOutputs(const BackwardMmaJob& job_in, const MmaPlace& place,
                                         BackwardMemory<S>& memory)
      : job(job_in),
        at(place),
        m(memory),
        row(first_row() + at.lane / 4),
        column(first_column() + at.lane % 4 * 2),
        r(static_cast<int>(at.lane / 4 % S::kRank)),
        skip(job.scan.params.skip[at.head]) {}

  // Half of the warps start the product with the state at the chunk's start, the others that with
  // the state at its end, of twice the columns that they go on with: wgmma reads its first factor
  // for each warpgroup again, which for 16 columns takes longer than the product.
  __device__ __forceinline__ void start_states() {
    const Operands in(m);
    wgmma_fence();
    start_multiply<false, S::kStateSteps, 0, 1, 2>(
        has_start() ? in.tile(m.q) : in.tile(m.k),
        has_start() ? in.columns(m.state, first_made()) : in.columns(m.grad_state, first_made()),
        products);
    wgmma_commit();
  }

  __device__ __forceinline__ void finish_states(const ChunkDecays<S>& decays) {
    wgmma_wait<0>();
    hold<2>(products);
    common = row_sum(has_start() ? m.grad_o : m.x);
    const float* by = has_start() ? decays.start_decay : decays.fade;
    scale_rows<2>(by[token(0)], by[token(1)], products);
  }
  // What rows have in common with the state, and the product's other columns. Apart from
  // finish_states(), for what is loaded behind a store waits.
  __device__ __forceinline__ void tell_states(ChunkSums<S>& sums) {
    const auto give = [&](const float(*eighths)[4]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        m.given[i][threadIdx.x] =
            make_float4(eighths[i][0], eighths[i][1], eighths[i][2], eighths[i][3]);
      }
    };
    if (has_start()) {
      give(products + 2);
    } else {
      give(products);
    }
    if (!tells<2, 1, 2>(at.lane)) return;
    auto& to = has_start() ? sums.start : sums.end;
    to[half()][row + 8 * first_of_lane<2, 1, 2>(at.lane)] = common;
  }
  // In place of what was given away; when all have told.
  __device__ __forceinline__ void take_states() {
    const auto take = [&](float(*eighths)[4]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 taken = m.given[i][threadIdx.x ^ (kRowTiles * kWarpLanes)];
        eighths[i][0] = taken.x;
        eighths[i][1] = taken.y;
        eighths[i][2] = taken.z;
        eighths[i][3] = taken.w;
      }
    };
    if (has_start()) {
      take(products + 2);
    } else {
      take(products);
    }
  }

  // What tokens of the chunk gave each other; when the scores are there.
  __device__ __forceinline__ void add_scores() {
    const Factor scores(m, m.scores, at.lane), x(m, m.x, at.lane), grad_o(m, m.grad_o, at.lane);
    const auto tile = static_cast<int>(at.warp % kRowTiles);
    multiply<kRowTiles, 1>(
        0, tile + 1, [&](int step, auto& a) { scores.left(first_row(), 16 * step, a); },
        [&](int step, int, auto& b) { x.right(16 * step, first_column(), b); },
        two_eighths(products));
    multiply<kRowTiles, 1>(
        tile, kRowTiles,
        [&](int step, auto& a) { scores.left_transposed(16 * step, first_row(), a); },
        [&](int step, int, auto& b) { grad_o.right(16 * step, first_column(), b); },
        two_eighths(products + 2));
  }

  // Through gate and skip, to the columns and to what is summed over the sequence.
  __device__ __forceinline__ void finish(const BackwardChunk& chunk) {
    float grad_z[8], to_x[8];  // [row, eighth of columns, neighbour]
    float sums[3][4] = {};     // of mimo_x, z, o
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const unsigned p = column + 8 * j;
        const float2 x = input_pair(m.keys.x, token(i), p), z = input_pair(m.raw_z, token(i), p);
        const float2 grad_y = input_pair(m.raw_grad_y, token(i), p);
        const float2 weight_x = weight_pair(m.mimo_x, p), weight_z = weight_pair(m.mimo_z, p);
        const float2 weight_o = weight_pair(m.mimo_o, p);
        element({x.x, z.x, grad_y.x}, {weight_x.x, weight_z.x, weight_o.x}, products[j][2 * i],
                products[2 + j][2 * i], 2 * j, sums, grad_z[4 * i + 2 * j], to_x[4 * i + 2 * j]);
        element({x.y, z.y, grad_y.y}, {weight_x.y, weight_z.y, weight_o.y}, products[j][2 * i + 1],
                products[2 + j][2 * i + 1], 2 * j + 1, sums, grad_z[4 * i + 2 * j + 1],
                to_x[4 * i + 2 * j + 1]);
      }
    }
    if constexpr (S::kRank > 1) {
#pragma unroll
      for (int which = 0; which < 3; ++which) {
        keep_sums(sums[which], m.gate_sums[which][at.warp % kRowTiles]);
      }
    }
    write(chunk, grad_z, to_x);
  }

 private:
  __device__ __forceinline__ unsigned first_row() const {
    return at.warp % kRowTiles * 16;
  }
  // Whose product with a state the warp makes: of this half of p.
  __device__ __forceinline__ bool has_start() const {
    return at.warp / kRowTiles % 2 == 0;
  }
  __device__ __forceinline__ unsigned half() const {
    return at.warp / (2 * kRowTiles);
  }
  __device__ __forceinline__ unsigned first_made() const {
    return half() * 32;
  }
  // And of which columns of both it goes on with.
  __device__ __forceinline__ unsigned first_column() const {
    return at.warp / kRowTiles * 16;
  }
  __device__ __forceinline__ unsigned token(int i) const {
    return (row + 8 * i) / S::kRank;
  }

  // For each row the sum of tile * product; a lane is left with one row's.
  __device__ __forceinline__ float row_sum(const unsigned char* tile) const {
    const Factor factor(m, tile, at.lane);
    float of_rows[2] = {};
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      std::uint32_t words[4];
      factor.left(first_row(), first_made() + 16 * block, words);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* own = &products[2 * block + i / 2][i % 2 * 2];
        const float2 pair = wide_pair(words[i]);
        of_rows[i % 2] = fmaf(pair.x, own[0], fmaf(pair.y, own[1], of_rows[i % 2]));
      }
    }
    sum_lanes<2, 1, 2>(of_rows, at.lane);
    return of_rows[0];
  }

  // Of column p and the next.
  __device__ __forceinline__ float2 weight_pair(const float (&weights)[S::kRank][kWeightRow],
                                                unsigned p) const {
    if constexpr (S::kRank == 1) return make_float2(1.0f, 1.0f);
    return float_pair(&weights[r][weight_place(p)]);
  }

  // An element's inputs, and the weights that its rank gives them.
  struct Inputs {
    float x;
    float z;
    float grad_y;
  };
  __device__ __forceinline__ void element(const Inputs& in, const Inputs& weights, float o,
                                          float grad_own, int number, float (&sums)[3][4],
                                          float& grad_z, float& to_x) {
    const float own_x = in.x * weights.x;
    const Gate gate(in.z * weights.z);
    const float read_out = fmaf(skip, own_x, o);
    const float grad = in.grad_y * weights.grad_y;
    const float grad_o = grad * gate.at;
    const float grad_gate = grad * read_out * gate.slope;
    const float grad_spread = fmaf(skip, grad_o, grad_own);
    skip_sum = fmaf(grad_o, own_x, skip_sum);
    grad_z = grad_gate * weights.z;
    to_x = grad_spread * weights.x;
    if constexpr (S::kRank > 1) {
      sums[0][number] = fmaf(grad_spread, in.x, sums[0][number]);
      sums[1][number] = fmaf(grad_gate, in.z, sums[1][number]);
      sums[2][number] = fmaf(in.grad_y * read_out, gate.at, sums[2][number]);
    }
  }

  __device__ __forceinline__ void keep_sums(float (&sums)[4],
                                            float (&to)[S::kRank][kGateRow]) const {
    sum_lanes<16, kSameRank, 4>(sums, at.lane);
    if (!tells<16, kSameRank, 4>(at.lane)) return;
    const int first = first_of_lane<16, kSameRank, 4>(at.lane);
    add_sums<LaneSums<16, kSameRank, 4>::kLeft>(sums, first, &to[r][column]);
  }

  // Sums over ranks, which leave a lane with some of the pairs: of both rows, of one, or one of
  // these.
  __device__ __forceinline__ void write(const BackwardChunk& chunk, float (&grad_z)[8],
                                        float (&to_x)[8]) const {
    sum_lanes<kRankBit, 4, 8>(grad_z, at.lane);
    sum_lanes<kRankBit, 4, 8>(to_x, at.lane);
    const int first = first_of_lane<kRankBit, 4, 8>(at.lane);
    const std::int64_t place =
        std::int64_t{at.head} * kBackwardHeadDim + column + first / 2 % 2 * 8;
    constexpr int kOwn = 8 / S::kRank;
    constexpr int kPairs = kOwn < 4 ? 1 : 2;  // of a row
#pragma unroll
    for (int left = 0; left < kOwn; left += 4) {
      const auto own = static_cast<int>(token((first + left) / 4));
      if (own >= chunk.tokens) continue;
      if (own == at.end - 1 - chunk.begin) add_last<kPairs>(place, to_x + left);
      put_row<kPairs>((chunk.begin + own) * job.grads.z.stride + place, grad_z + left, to_x + left);
    }
  }

  // Gradients of z and x have the same type, and rows as far apart.
  template <int kPairs>
  __device__ __forceinline__ void put_row(std::int64_t first, const float* grad_z,
                                          const float* grad_x) const {
    const GradientColumn &z = job.grads.z, &x = job.grads.x;
    if (z.bf16 == nullptr) {
      put_pairs<kPairs>(z.fp32 + first, grad_z);
      put_pairs<kPairs>(x.fp32 + first, grad_x);
    } else {
      put_pairs<kPairs>(z.bf16 + first, grad_z);
      put_pairs<kPairs>(x.bf16 + first, grad_x);
    }
  }

  // The state's x is that of the last token.
  template <int kPairs>
  __device__ __forceinline__ void add_last(std::int64_t place, float* pairs) const {
    const float* v = job.grad_states.v + at.slot * job.grad_states.v_stride + place;
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) pairs[i] += v[i / 2 * 8 + i % 2];
  }
};

}  // namespace
}  // namespace mamba3
