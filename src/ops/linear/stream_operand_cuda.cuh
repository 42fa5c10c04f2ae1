// The rows of x of a streamed product: in the registers of the warps that multiply, rounded to
// bf16, after the norm where there is one.
#pragma once

#include "ops/linear/stream_ring_cuda.cuh"

namespace mamba3 {
namespace {

#if __CUDA_ARCH__ >= 900

// fp32 x of a few rows goes through shared memory: a thread loads, and rounds, every fourth
// vector of a row. Where there is a norm, its weights have come before x exists.
struct StagedX {
  static constexpr int kHeld = kMostK / (kThreads * 4);  // vectors
  float weight[kHeld][4];

  __device__ static int at(int held) {
    return (held * kThreads + static_cast<int>(threadIdx.x)) * 4;
  }

  __device__ void load_weights(const StreamJob& job) {
    if (job.norm_weight == nullptr) return;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (at(i) < job.k) load_vector<4>(job.norm_weight + at(i), weight[i]);
    }
  }

  // x [row] as bf16 in `staged`. The root mean square as rms_norm takes it, in the same order.
  __device__ void put(const StreamJob& job, int row, double (&squares)[kWarps],
                      __nv_bfloat16* staged) const {
    const float* x = static_cast<const float*>(job.x) + row * job.x_stride;
    float values[kHeld][4];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (at(i) < job.k) load_vector<4>(x + at(i), values[i]);
    }
    if (job.norm_weight != nullptr) normalise(job, squares, values);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (at(i) < job.k) store_vector<4>(values[i], staged + at(i));
    }
  }

  __device__ void normalise(const StreamJob& job, double (&squares)[kWarps],
                            float (&values)[kHeld][4]) const {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (at(i) >= job.k) continue;
      for (int v = 0; v < 4; ++v) sum = fma(double{values[i][v]}, double{values[i][v]}, sum);
    }
    sum = warp_sum(sum);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread % kWarpLanes == 0) squares[thread / kWarpLanes] = sum;
    wait_for_warps();
    sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += squares[i];
    const auto rstd = static_cast<float>(1.0 / sqrt(sum / static_cast<double>(job.k) + job.eps));
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      for (int v = 0; v < 4; ++v) values[i][v] = weight[i][v] * (values[i][v] * rstd);
    }
  }
};

// What a lane multiplies one stage by: of row lane / 4 of each tile of x, eight numbers of each 32
// that its warp takes, as they lie in memory. The mma's order along k is permuted by that, alike
// for x and for the weights. Loads are not behind branches, so that all of them are under way at
// once.
template <int kTiles>
struct Operand {
  std::uint32_t words[kTiles][kHalves][4];

  __device__ static int at(int chunk, int half) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    return chunk * kChunk + warp * kWarpChunk + half * kHalf +
           static_cast<int>(threadIdx.x) % 4 * 8;
  }
  __device__ static int row(int tile) {
    return tile * kColumns + static_cast<int>(threadIdx.x) % kWarpLanes / 4;
  }
  __device__ void put(int tile, int half, bool exists, const uint4& v) {
    std::uint32_t(&to)[4] = words[tile][half];
    to[0] = exists ? v.x : 0, to[1] = exists ? v.y : 0;
    to[2] = exists ? v.z : 0, to[3] = exists ? v.w : 0;
  }

  __device__ void load(const StreamJob& job, int chunk, const __nv_bfloat16* x,
                       std::int64_t stride) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const __nv_bfloat16* from = x + min(row(tile), job.rows - 1) * stride;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const bool inside = at(chunk, half) < job.k;
        const auto* v = reinterpret_cast<const uint4*>(from + (inside ? at(chunk, half) : 0));
        put(tile, half, inside && row(tile) < job.rows, *v);
      }
    }
  }

  __device__ void load(const StreamJob& job, int chunk, const float* x) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float* from = x + min(row(tile), job.rows - 1) * job.x_stride;
      float4 values[kHalves][2];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int column = at(chunk, half) < job.k ? at(chunk, half) : 0;
        values[half][0] = *reinterpret_cast<const float4*>(from + column);
        values[half][1] = *reinterpret_cast<const float4*>(from + column + 4);
      }
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const float4 a = values[half][0], b = values[half][1];
        put(tile, half, at(chunk, half) < job.k && row(tile) < job.rows,
            {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)});
      }
      asm volatile("" ::: "memory");  // registers for one tile's loads at a time
    }
  }

  // From where x is.
  __device__ void load(const StreamJob& job, int chunk) {
    if (job.x_is_bf16) {
      load(job, chunk, static_cast<const __nv_bfloat16*>(job.x), job.x_stride);
    } else {
      load(job, chunk, static_cast<const float*>(job.x));
    }
  }
};

// The first kCount chunks. `room` and `squares`: shared memory that nobody else uses until this
// returns.
template <int kTiles, int kCount>
__device__ void fetch_x(const StreamJob& job, __nv_bfloat16* room, double (&squares)[2][kWarps],
                        Operand<kTiles> (&x)[kCount]) {
  if (kTiles == 1 && job.staged) {
    StagedX staged;
    staged.load_weights(job);
    wait_for_predecessor();
    for (int row = 0; row < job.rows; ++row) {
      staged.put(job, row, squares[row % 2], room + row * job.k);
    }
    wait_for_warps();
#pragma unroll
    for (int c = 0; c < kCount; ++c) x[c].load(job, c, room, job.k);
    return wait_for_warps();
  }
  wait_for_predecessor();
#pragma unroll
  for (int c = 0; c < kCount; ++c) x[c].load(job, c);
}

#endif

}  // namespace
}  // namespace mamba3
