// What becomes of the read-outs in the scan by mma.sync: skip, gate, the sum over ranks, y; where
// the layer normalises them, which takes all columns of a head, they go out as they are.
#pragma once

#include <cstdint>

#include "ops/mamba3_scan/scan_mma_products_cuda.cuh"

namespace mamba3 {
namespace {

__device__ __forceinline__ void store_pair(float2 v, float* to) {
  to[0] = v.x;
  to[1] = v.y;
}
__device__ __forceinline__ void store_pair(float2 v, __nv_bfloat16* to) {
  *reinterpret_cast<std::uint32_t*>(to) = pack_bf16(v.x, v.y);
}

// A warp's part of the outputs of a chunk, where a thread has row lane / 4 of every eight, and of
// it columns 8 j + lane % 4 * 2 and the next. T: what x, z and y are.
template <class T, class S>
struct OutputWriter {
  static constexpr int kEights = S::kRows / 8;
  const MmaScanJob& job;
  const MmaPlace& at;
  int begin;   // of the chunk
  int column;  // the thread's first, of the block's
  int r;       // the rank of all its rows
  int token;   // of its first row, in the chunk
  int step;    // tokens to its next row
  HeadColumns<T> columns;
  RawPair<T> x[kEights][2];
  RawPair<T> z[kEights][2];

  // Asks for x and z, long before write().
  __device__ __forceinline__ OutputWriter(const MmaScanJob& job_in, const MmaPlace& place,
                                          int begin_in)
      : job(job_in),
        at(place),
        begin(begin_in),
        column(static_cast<int>(at.warp * kWarpColumns + at.lane % 4 * 2)),
        r(static_cast<int>(at.lane / 4) & ((1 << S::rank_bits(job)) - 1)),
        token(static_cast<int>(at.lane / 4) >> S::rank_bits(job)),
        step(8 >> S::rank_bits(job)),
        columns(job, at.head, at.column + column) {
    std::int64_t row = (begin + token) * columns.stride;
#pragma unroll
    for (int i = 0; i < kEights; ++i, row += step * columns.stride) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool there = is(i) && has(j);
        x[i][j] = there ? raw_pair(columns.x + row + 8 * j) : RawPair<T>{};
        z[i][j] = there ? raw_pair(columns.z + row + 8 * j) : RawPair<T>{};
      }
    }
  }

  __device__ __forceinline__ void write(MmaMemory<S>& m, MmaReadOut<S>& o) const {
    // Ranks that are only there to fill rows have another's weights, and zeros to multiply.
    const RankMemory<S>& rank = m.rank(min(r, S::rank(job) - 1));
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (!has(j)) continue;
      const float2 skip = float_pair(&rank.skip_x[column + 8 * j]);
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        float* own = &o[i / 2][j][i % 2 * 2];
        const float2 v = wide_pair(x[i][j]);
        own[0] = fmaf(skip.x, v.x, own[0]);
        own[1] = fmaf(skip.y, v.y, own[1]);
      }
      job.sizes.out_norm ? write_read_outs(j, o) : write_y(rank, j, o);
    }
  }

 private:
  // Whether the token of a row is there, and whether columns are.
  __device__ __forceinline__ bool is(int eight) const {
    return begin + token + eight * step < at.end;
  }
  __device__ __forceinline__ bool has(int j) const {
    return at.warp_column() + 8 * j < job.sizes.head_dim;
  }
  static __device__ __forceinline__ float2 pair_of(const MmaReadOut<S>& o, int eight, int j) {
    const float* from = &o[eight / 2][j][eight % 2 * 2];
    return make_float2(from[0], from[1]);
  }

  __device__ __forceinline__ void write_read_outs(int j, const MmaReadOut<S>& o) const {
    if (r >= S::rank(job)) return;
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      if (!is(i)) return;
      const std::int64_t own = begin + token + i * step;
      const std::int64_t row = (own * S::rank(job) + r) * job.sizes.heads + at.head;
      store_pair(pair_of(o, i, j),
                 job.read_out + row * job.sizes.head_dim + at.column + column + 8 * j);
    }
  }

  __device__ __forceinline__ void write_y(const RankMemory<S>& rank, int j,
                                          const MmaReadOut<S>& o) const {
    const float2 rate = float_pair(&rank.gate_rate[column + 8 * j]);
    float2 scale = float_pair(&rank.gate_scale[column + 8 * j]);
    if (r >= S::rank(job)) scale = make_float2(0, 0);
    T* to = columns.y + (begin + token) * columns.y_stride + 8 * j;
#pragma unroll
    for (int i = 0; i < kEights; ++i, to += step * columns.y_stride) {
      const float2 own = pair_of(o, i, j), v = wide_pair(z[i][j]);
      const float2 y = sum_of_ranks(make_float2(own.x * gate_of(v.x, rate.x, scale.x),
                                                own.y * gate_of(v.y, rate.y, scale.y)));
      if (is(i) && r == 0) store_pair(y, to);
    }
  }

  // Rows of one token are four lanes apart.
  __device__ __forceinline__ float2 sum_of_ranks(float2 y) const {
#pragma unroll
    for (int bit = 0; bit < 3; ++bit) {
      if (bit >= S::rank_bits(job)) break;
      y.x += __shfl_xor_sync(0xffffffffu, y.x, 4 << bit);
      y.y += __shfl_xor_sync(0xffffffffu, y.y, 4 << bit);
    }
    return y;
  }
};

}  // namespace
}  // namespace mamba3
