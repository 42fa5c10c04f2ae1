// A warp makes one or two outputs of up to eight rows. Its lanes walk along k, each with one sum
// for a row and an output, in one order: a row's bits do not depend on the rows beside it.
#include <cuda_bf16.h>

#include <algorithm>

#include "device/dependent_launch.cuh"
#include "ops/launch.cuh"
#include "ops/linear/linear_skinny_cuda.h"

namespace mamba3 {
namespace {

constexpr int kWarps = 4;
constexpr int kLanes = 32;
constexpr int kMostRows = 8;
constexpr int kVector = 8;  // numbers that a lane takes at once

struct SkinnyArgs {
  const float* x;
  std::int64_t x_stride;
  const void* w;
  float* y;
  std::int64_t y_stride;
  std::int64_t rows, n, k;
  bool round;       // x, and weights that are not bf16 already
  bool accumulate;  // onto y
};

__device__ float rounded(float v, bool round) {
  return round ? __bfloat162float(__float2bfloat16_rn(v)) : v;
}

__device__ void load_vector(const float* from, bool round, float (&out)[kVector]) {
  const float4 a = *reinterpret_cast<const float4*>(from);
  const float4 b = *(reinterpret_cast<const float4*>(from) + 1);
  const float all[kVector] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < kVector; ++i) out[i] = rounded(all[i], round);
}

__device__ void load_vector(const __nv_bfloat16* from, bool, float (&out)[kVector]) {
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(from));  // read once: leave no trace
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ float load_one(const float* from, bool round) {
  return rounded(*from, round);
}
__device__ float load_one(const __nv_bfloat16* from, bool) {
  return __bfloat162float(*from);
}

// Rows [row, row + kRows) of outputs [out, out + kOuts); what lies beyond the ends repeats the last
// row or output and is not stored.
template <class W, int kRows, int kOuts>
struct Tile {
  float sums[kRows][kOuts] = {};
  const float* x[kRows];
  const W* w[kOuts];

  __device__ Tile(const SkinnyArgs& args, std::int64_t row, std::int64_t out) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] = args.x + min(row + r, args.rows - 1) * args.x_stride;
#pragma unroll
    for (int o = 0; o < kOuts; ++o) {
      w[o] = static_cast<const W*>(args.w) + min(out + o, args.n - 1) * args.k;
    }
  }

  __device__ void add_vector(std::int64_t at, bool round) {
    float weights[kOuts][kVector];
#pragma unroll
    for (int o = 0; o < kOuts; ++o) load_vector(w[o] + at, round, weights[o]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float values[kVector];
      load_vector(x[r] + at, round, values);
#pragma unroll
      for (int o = 0; o < kOuts; ++o) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          sums[r][o] = fmaf(values[i], weights[o][i], sums[r][o]);
        }
      }
    }
  }

  __device__ void add_one(std::int64_t at, bool round) {
#pragma unroll
    for (int o = 0; o < kOuts; ++o) {
      const float weight = load_one(w[o] + at, round);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sums[r][o] = fmaf(load_one(x[r] + at, round), weight, sums[r][o]);
      }
    }
  }

  __device__ void store(const SkinnyArgs& args, std::int64_t row, std::int64_t out, int lane) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int o = 0; o < kOuts; ++o) {
        float sum = sums[r][o];
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2) {
          sum += __shfl_xor_sync(0xffffffffu, sum, step);
        }
        const bool inside = row + r < args.rows && out + o < args.n;
        if (lane != 0 || !inside) continue;
        float* const to = args.y + (row + r) * args.y_stride + out + o;
        *to = args.accumulate ? *to + sum : sum;
      }
    }
  }
};

template <class W, int kRows, int kOuts, bool kAligned>
__global__ void __launch_bounds__(kWarps* kLanes) skinny(const SkinnyArgs args) {
  start_successor();
  wait_for_predecessor();
  const int lane = threadIdx.x % kLanes;
  const std::int64_t warp = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  const std::int64_t out = warp * kOuts;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * kRows;
  if (out >= args.n) return;
  Tile<W, kRows, kOuts> tile(args, row, out);
  if constexpr (kAligned) {
#pragma unroll 4
    for (std::int64_t at = lane * kVector; at < args.k; at += kLanes * kVector) {
      tile.add_vector(at, args.round);
    }
  } else {
    for (std::int64_t at = lane; at < args.k; at += kLanes) tile.add_one(at, args.round);
  }
  tile.store(args, row, out, lane);
}

template <class W, int kRows, int kOuts>
void launch(const SkinnyArgs& args, bool aligned, Context& ctx) {
  const std::int64_t warps = (args.n + kOuts - 1) / kOuts;
  const dim3 grid(static_cast<unsigned>((warps + kWarps - 1) / kWarps),
                  static_cast<unsigned>((args.rows + kRows - 1) / kRows));
  launch_dependent("linear: few rows",
                   aligned ? skinny<W, kRows, kOuts, true> : skinny<W, kRows, kOuts, false>,
                   {grid, kWarps * kLanes}, ctx, args);
}

// Few instantiations: rows up to 1, 4 and 8.
template <class W>
void launch_rows(const SkinnyArgs& args, bool aligned, Context& ctx) {
  if (args.rows == 1) return launch<W, 1, 1>(args, aligned, ctx);
  if (args.rows <= 4) return launch<W, 4, 2>(args, aligned, ctx);
  launch<W, kMostRows, 2>(args, aligned, ctx);
}

bool on_16_bytes(const void* p, std::int64_t stride_bytes) {
  return (reinterpret_cast<std::uintptr_t>(p) | static_cast<std::uintptr_t>(stride_bytes)) % 16 ==
         0;
}

}  // namespace

void linear_skinny_cuda(const LinearArgs& args, Context& ctx) {
  const std::int64_t k = args.x.shape[1], w_bytes = dtype_bytes(args.w.dtype);
  const SkinnyArgs skinny_args{args.x.floats(),
                               args.x.stride[0],
                               args.w.data,
                               args.y.floats(),
                               args.y.stride[0],
                               args.x.shape[0],
                               args.w.shape[0],
                               k,
                               args.compute == Compute::kBf16,
                               args.accumulate};
  // Which of the two orders of sums is taken depends on k alone where x and w begin on 16 bytes.
  const bool aligned = k % kVector == 0 && on_16_bytes(args.x.data, args.x.stride[0] * 4) &&
                       on_16_bytes(args.w.data, k * w_bytes);
  if (args.w.dtype == DType::kBf16) {
    launch_rows<__nv_bfloat16>(skinny_args, aligned, ctx);
  } else {
    launch_rows<float>(skinny_args, aligned, ctx);
  }
}

}  // namespace mamba3
