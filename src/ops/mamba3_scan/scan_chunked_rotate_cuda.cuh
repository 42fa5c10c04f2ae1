// Rows of K and Q for the chunked scan: eight warps normalise, bias and rotate those of a chunk,
// while others multiply those of the chunk before. Rows come from memory into registers, a chunk
// ahead.
#pragma once

#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/mamba3_scan/scan_chunked_memory_cuda.cuh"

namespace mamba3 {
namespace {

// What a warp's tokens bring into a chunk. Behind the sequence's end stand its last token's rows,
// whose weights are zero.
template <class S>
struct RawRows {
  __half2 b[S::kWarpRows][S::kLanePairs];
  __half2 c[S::kWarpRows][S::kLanePairs];

  __device__ __forceinline__ void load(const ChunkedScanJob& job, const ChunkPlace& at, int begin) {
    const int first = begin + at.warp * S::kWarpTokens;
    if (first + S::kWarpTokens <= at.end) {
      load_rows<true>(job, at, first);
    } else {
      load_rows<false>(job, at, first);
    }
  }

 private:
  template <bool kWhole>
  __device__ __forceinline__ void load_rows(const ChunkedScanJob& job, const ChunkPlace& at,
                                            int first) {
    constexpr int kRowPairs = S::kState / 2;
    const std::int64_t start = at.group * job.tokens;
    const auto* in_b = reinterpret_cast<const __half2*>(job.in_b) + at.lane;
    const auto* out_c = reinterpret_cast<const __half2*>(job.out_c) + at.lane;
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      const int token = kWhole ? first : min(first + t, at.end - 1);
      const std::int64_t from = (start + token) * (S::kRank * kRowPairs) +
                                (kWhole ? t * S::kRank * kRowPairs : 0);
#pragma unroll
      for (int r = 0; r < S::kRank; ++r) {
#pragma unroll
        for (int j = 0; j < S::kLanePairs; ++j) {
          b[t * S::kRank + r][j] = __ldg(in_b + from + r * kRowPairs + j * kWarpLanes);
          c[t * S::kRank + r][j] = __ldg(out_c + from + r * kRowPairs + j * kWarpLanes);
        }
      }
    }
  }
};

// turns_moved of steps below 2^19 turns: added to a number whose last place is 2^-32, a step leaves
// its fraction, rounded, in the lower word of the sum.
__device__ __forceinline__ std::uint32_t small_turns_moved(double half_tanh, double dt,
                                                           bool& small) {
  const double step = __dmul_rn(half_tanh, dt);
  small = (__double2hiint(step) & 0x7fffffff) < 0x41200000;
  return static_cast<std::uint32_t>(__double2loint(__dadd_rn(step, 0x1.8p20)));
}

// How far a warp's tokens turn this lane's pairs.
template <class S>
struct Phases {
  double half_tanh[S::kWarpTokens][S::kTurned];
  double dt;                                       // of the token with the lane's number
  std::uint32_t turns[S::kWarpTokens][S::kTurned];  // from the warp's first token on
  std::uint32_t broken;  // bit t * kTurned + j: a step that is not finite

  // Tokens behind the end turn nothing.
  __device__ __forceinline__ void load(const ChunkedScanJob& job, const ChunkPlace& at, int begin) {
    const int first = begin + at.warp * S::kWarpTokens;
    const double* from = job.half_tanh + std::int64_t{first} * (S::kState / 2) + at.lane;
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
#pragma unroll
      for (int j = 0; j < S::kTurned; ++j) {
        half_tanh[t][j] =
            first + t < at.end ? __ldg(from + t * (S::kState / 2) + j * kWarpLanes) : 0.0;
      }
    }
    dt = at.lane < S::kWarpTokens && first + at.lane < at.end
             ? __ldg(job.dt + at.head * job.tokens + first + at.lane)
             : 0.0;
  }

  // Leaves what all the warp's tokens turn in `sums`.
  __device__ __forceinline__ void sum(const ChunkPlace& at, double (&dts)[S::kWarpTokens],
                                      std::uint32_t (&sums)[S::kTurned * kWarpLanes]) {
    if (at.lane < S::kWarpTokens) dts[at.lane] = dt;
    __syncwarp();
    broken = 0;
#pragma unroll
    for (int j = 0; j < S::kTurned; ++j) {
      std::uint32_t sum = 0;
      bool all_small = true;
#pragma unroll
      for (int t = 0; t < S::kWarpTokens; ++t) {
        bool small;
        sum += small_turns_moved(half_tanh[t][j], dts[t], small);
        turns[t][j] = sum;
        all_small = all_small && small;
      }
      if (!all_small) sum = sum_large(dts, j);
      sums[j * kWarpLanes + at.lane] = sum;
    }
  }

 private:
  __device__ __forceinline__ std::uint32_t sum_large(const double (&dts)[S::kWarpTokens], int j) {
    std::uint32_t sum = 0;
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      bool finite = true;
      sum += turns_moved(half_tanh[t][j], dts[t], finite);
      turns[t][j] = sum;
      if (!finite) broken |= 1u << (t * S::kTurned + j);
    }
    return sum;
  }
};

// What was moved by the warps before this one, and by all.
template <class S>
__device__ __forceinline__ void sum_turns(
    const std::uint32_t (&moved)[kRotatingWarps][S::kTurned * kWarpLanes], const ChunkPlace& at,
    std::uint32_t (&start)[S::kTurned], std::uint32_t (&own)[S::kTurned]) {
#pragma unroll
  for (int j = 0; j < S::kTurned; ++j) {
    own[j] = start[j];
#pragma unroll
    for (int warp = 0; warp < kRotatingWarps; ++warp) {
      const std::uint32_t more = moved[warp][j * kWarpLanes + at.lane];
      if (warp < at.warp) own[j] += more;
      start[j] += more;
    }
  }
}

__device__ __forceinline__ float2 biased(__half2 normed, float2 weight, float2 bias) {
  const float2 v = __half22float2(normed);
  return make_float2(fmaf(v.x, weight.x, bias.x), fmaf(v.y, weight.y, bias.y));
}

__device__ __forceinline__ float2 turned(float2 v, float2 cos_sin) {
  return make_float2(fmaf(-v.y, cos_sin.y, v.x * cos_sin.x), fmaf(v.y, cos_sin.x, v.x * cos_sin.y));
}

// To about 2^-21, far within what rounding to bf16 takes.
__device__ __forceinline__ float2 fast_cos_sin(std::uint32_t turns) {
  constexpr float kRadians = 1.4629180792671596e-9f;  // 2 pi / 2^32
  const float angle = static_cast<float>(static_cast<std::int32_t>(turns)) * kRadians;
  return make_float2(__cosf(angle), __sinf(angle));
}

template <class S>
__device__ __forceinline__ float2 cos_sin_of(const Phases<S>& phases, int t, int j,
                                             std::uint32_t start) {
  if ((phases.broken >> (t * S::kTurned + j) & 1u) != 0) return make_float2(nanf(""), nanf(""));
  return fast_cos_sin(start + phases.turns[t][j]);
}

// Rows K and Q of the warp's tokens. `start`: turns before the first of them.
template <class S>
__device__ __forceinline__ void rotate_rows(const RawRows<S>& raw, const Phases<S>& phases,
                                            const ChunkPlace& at,
                                            const std::uint32_t (&start)[S::kTurned],
                                            const ChunkMemory<S>& m, ChunkStage<S>& stage) {
#pragma unroll
  for (int j = 0; j < S::kLanePairs; ++j) {
    const int pair = j * kWarpLanes + at.lane;
    const float2 b_norm = m.in_b_norm[pair];
    const float2 c_norm = m.out_c_norm[pair];
    float2 b_bias[S::kRank];
    float2 c_bias[S::kRank];
#pragma unroll
    for (int r = 0; r < S::kRank; ++r) {
      b_bias[r] = m.in_b_bias[r][pair];
      c_bias[r] = m.out_c_bias[r][pair];
    }
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      float2 cos_sin;
      if (j < S::kTurned) cos_sin = cos_sin_of(phases, t, j % S::kTurned, start[j % S::kTurned]);
#pragma unroll
      for (int r = 0; r < S::kRank; ++r) {
        float2 k = biased(raw.b[t * S::kRank + r][j], b_norm, b_bias[r]);
        float2 q = biased(raw.c[t * S::kRank + r][j], c_norm, c_bias[r]);
        if (j < S::kTurned) {
          k = turned(k, cos_sin);
          q = turned(q, cos_sin);
        }
        const int to = swizzled(S::row(at.warp * S::kWarpTokens + t, r), 2 * at.lane);
        *reinterpret_cast<std::uint32_t*>(stage.k[j] + to) = pack_bf16(k.x, k.y);
        *reinterpret_cast<std::uint32_t*>(stage.q[j] + to) = pack_bf16(q.x, q.y);
      }
    }
  }
}

// K of the warp's token `kept`, in fp32.
template <class S>
__device__ __forceinline__ void keep_k(const ChunkedScanJob& job, const Phases<S>& phases,
                                       const ChunkPlace& at,
                                       const std::uint32_t (&start)[S::kTurned], int begin,
                                       int kept, const ChunkMemory<S>& m, ChunkStage<S>& stage) {
  const std::int64_t token = at.group * job.tokens + begin + at.warp * S::kWarpTokens + kept;
  const auto* in_b = reinterpret_cast<const __half2*>(job.in_b + token * S::kRank * S::kState);
#pragma unroll
  for (int j = 0; j < S::kLanePairs; ++j) {
    const int pair = j * kWarpLanes + at.lane;
    float2 cos_sin = make_float2(1, 0);
#pragma unroll
    for (int t = 0; t < S::kWarpTokens; ++t) {
      if (j < S::kTurned && t == kept) {
        cos_sin = cos_sin_of(phases, t, j % S::kTurned, start[j % S::kTurned]);
      }
    }
#pragma unroll
    for (int r = 0; r < S::kRank; ++r) {
      const float2 k = biased(in_b[r * (S::kState / 2) + pair], m.in_b_norm[pair],
                              m.in_b_bias[r][pair]);
      stage.kept.k[r][pair] = j < S::kTurned ? turned(k, cos_sin) : k;
    }
  }
}

__device__ __forceinline__ void unpack_bf16(std::uint32_t bits, float& a, float& b) {
  a = __uint_as_float(bits << 16);
  b = __uint_as_float(bits & 0xffff0000u);
}

// X of every rank of the warp's tokens, where there are several.
template <class S>
struct RankRows {
  static constexpr int kPieces = S::kWarpRows * kRowPieces / kWarpLanes;
  uint4 x[kPieces];

  __device__ __forceinline__ void load(const ChunkedScanJob& job, const ChunkPlace& at, int begin) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const Piece piece(at, i);
      const int token = begin + piece.token;
      x[i] = token < at.end ? __ldg(reinterpret_cast<const uint4*>(
                                  job.x + token * job.zx_stride + at.head * kChunkHeadDim +
                                  piece.column))
                            : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ __forceinline__ void spread(const ChunkPlace& at, const ChunkMemory<S>& m,
                                         ChunkStage<S>& stage) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const Piece piece(at, i);
      const std::uint32_t from[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
      std::uint32_t own[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        float a;
        float b;
        unpack_bf16(from[w], a, b);
        const float2 weight =
            *reinterpret_cast<const float2*>(&m.mimo_x[piece.rank][piece.column + 2 * w]);
        own[w] = pack_bf16(a * weight.x, b * weight.y);
      }
      *reinterpret_cast<uint4*>(stage.own_x +
                                swizzled(S::row(piece.token, piece.rank), piece.column)) =
          make_uint4(own[0], own[1], own[2], own[3]);
    }
  }

 private:
  struct Piece {
    int column;
    int rank;
    int token;  // of the chunk
    __device__ __forceinline__ Piece(const ChunkPlace& at, int i) {
      const int index = i * kWarpLanes + at.lane;
      column = index % kRowPieces * 8;
      rank = index / kRowPieces % S::kRank;
      token = at.warp * S::kWarpTokens + index / kRowPieces / S::kRank;
    }
  };
};

}  // namespace
}  // namespace mamba3
