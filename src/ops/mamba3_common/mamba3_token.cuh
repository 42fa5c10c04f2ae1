// What one token does to one head, as device functions: scan and step on the GPU share them, so
// equal inputs give equal phases and equal rows K and Q, bit for bit. The same formulas in the same
// order as token_scalars.cpp and mamba3_token-inl.h; there the reasons are told.
//
// No sum of products here may be contracted differently from one kernel to the next, hence the
// __dmul_rn, __dadd_rn and __fmaf_rn.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/mamba3_common/kernel_path.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

// A row of the state, and a head's columns, are walked by threads that hold what is theirs in
// registers.
constexpr int kMostState = static_cast<int>(kMostStateCuda);
constexpr int kMostHeadDim = static_cast<int>(kMostHeadDimCuda);
constexpr double kBcNormEps = 1e-5f;

// Mamba3Dims for kernels: 32 bits where they suffice.
struct TokenSizes {
  int heads;
  int head_dim;
  int state;
  int groups;
  int rank;
  int angles;
  bool fixed_steps;
  bool mimo;
  bool out_norm;
  bool softplus;
  double a_floor;
};

inline TokenSizes token_sizes(const Mamba3Dims& dims) {
  check_gpu_takes(dims);
  TokenSizes out{};
  out.heads = static_cast<int>(dims.heads);
  out.head_dim = static_cast<int>(dims.head_dim);
  out.state = static_cast<int>(dims.state);
  out.groups = static_cast<int>(dims.groups);
  out.rank = static_cast<int>(dims.rank);
  out.angles = static_cast<int>(dims.angles);
  out.fixed_steps = dims.fixed_steps;
  out.mimo = dims.mimo;
  out.out_norm = dims.out_norm;
  out.softplus = dims.a_activation == AActivation::kSoftplus;
  out.a_floor = dims.a_floor;
  return out;
}

// Parts of a block's shared memory, each on a multiple of 16 bytes. Without memory it only
// measures, on the host.
class SharedParts {
 public:
  __host__ __device__ explicit SharedParts(float* base) : base_(base) {}
  template <class T>
  __host__ __device__ T* take(int count) {
    float* out = base_ == nullptr ? nullptr : base_ + floats_;
    floats_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 4;
    return reinterpret_cast<T*>(out);
  }
  __host__ __device__ int bytes() const { return floats_ * static_cast<int>(sizeof(float)); }

 private:
  float* base_;
  int floats_ = 0;
};

// TokenScalars, as the update of the state takes them.
struct TokenWeights {
  double turning;
  float decay;     // alpha
  float carry;     // beta, the weight of the previous token's outer product
  float now;       // gamma
  float fill = 0;  // of the last eight bytes: copies of a whole one read nothing unset
};

__device__ __forceinline__ double device_softplus(double x) {
  return __dadd_rn(x < 0 ? 0.0 : x, log1p(exp(-fabs(x))));
}

__device__ __forceinline__ double decay_activation(double x, bool softplus) {
  if (softplus) return device_softplus(x);
  return x >= 0 ? __dadd_rn(1.0, x) : 1.0 / __dadd_rn(1.0, -x);
}

// TokenScalars of token_scalars.h.
struct TokenNumbers {
  double dt;
  double log_decay;
  double carry;  // before this token's decay
  double now;
};

__device__ __forceinline__ TokenNumbers token_numbers(const TokenSizes& sizes, float dt_raw,
                                                      float dt_bias, float decay_raw,
                                                      float trap_raw) {
  TokenNumbers out;
  out.dt = device_softplus(__dadd_rn(dt_raw, dt_bias));
  const double act = decay_activation(decay_raw, sizes.softplus);
  // Written so that a NaN stays one.
  out.log_decay = __dmul_rn(-(act < sizes.a_floor ? sizes.a_floor : act), out.dt);
  const double e = exp(-fabs(static_cast<double>(trap_raw)));
  const double large = out.dt / __dadd_rn(1.0, e);
  const double small = __dmul_rn(large, e);
  out.carry = trap_raw >= 0 ? small : large;
  out.now = trap_raw >= 0 ? large : small;
  return out;
}

// What phases move by.
__device__ __forceinline__ double turning(const TokenSizes& sizes, double dt) {
  return sizes.fixed_steps ? 1.0 : dt;
}

__device__ __forceinline__ TokenWeights token_weights(const TokenSizes& sizes, float dt_raw,
                                                      float dt_bias, float decay_raw,
                                                      float trap_raw) {
  const TokenNumbers numbers = token_numbers(sizes, dt_raw, dt_bias, decay_raw, trap_raw);
  const double decay = exp(numbers.log_decay);
  TokenWeights out;
  out.turning = turning(sizes, numbers.dt);
  out.decay = static_cast<float>(decay);
  out.carry = static_cast<float>(__dmul_rn(numbers.carry, decay));
  out.now = static_cast<float>(numbers.now);
  return out;
}

__device__ __forceinline__ double half_tanh(float angle_raw) {
  return __dmul_rn(0.5, tanh(static_cast<double>(angle_raw)));
}

// fixed_step_turns(), in the same order.
__device__ __forceinline__ double fixed_step_turns(int pair, int pairs) {
  constexpr double kTurn = 6.28318530717958647692, kLog2 = 13.287712379549449;  // of 10000
  const double radians = exp2(-kLog2 * pair / pairs);
  return __dmul_rn(rint(__dmul_rn(radians / kTurn, 0x1p32)), 0x1p-32);
}

// turn_rates(): of one angle of the row that begins at `from`.
__device__ __forceinline__ double turn_rate(const TokenSizes& sizes, const float* angle_raw,
                                            std::int64_t from, int angle) {
  return sizes.fixed_steps ? fixed_step_turns(angle, sizes.angles)
                           : half_tanh(angle_raw[from + angle]);
}

// Of a step below 2^19 turns, in units of 2^-32 turns modulo a turn: the last place of the sum is
// one unit, so its low word is the nearest number of them, ties to even.
__device__ __forceinline__ std::uint32_t units_of_step(double step) {
  return static_cast<std::uint32_t>(__double2loint(__dadd_rn(step, 0x1.8p20)));
}

// Nearly all are below 2^18 turns.
__device__ __forceinline__ bool is_usual_step(double step) {
  return fabs(step) < 0x1p18;
}

// How far a phase moves, in those units. A step that is not finite does not
// move it and is told by `finite`: it becomes a NaN rotation.
__device__ __forceinline__ std::uint32_t turns_moved(double half_tanh, double dt, bool& finite) {
  double step = __dmul_rn(half_tanh, dt);
  finite = true;
  if (!is_usual_step(step)) {
    finite = isfinite(step);
    step = finite ? __dadd_rn(step, -rint(step)) : 0.0;
  }
  return units_of_step(step);
}

// Cosine and sine of unsigned 32-bit turns, or NaNs.
__device__ __forceinline__ void cos_sin_of_turns(std::uint32_t turns, bool finite, float& cosine,
                                                 float& sine) {
  const std::uint32_t quarter = (turns + (1u << 29)) >> 30;
  const auto rest = static_cast<std::int32_t>(turns - (quarter << 30));
  const float u = __fmul_rn(__int2float_rn(rest), 0x1p-29f);
  const float w = __fmul_rn(u, u);

  float s = __fmaf_rn(w, -3.595429073e-05f, 2.490006801e-03f);
  s = __fmaf_rn(w, s, -8.074543471e-02f);
  s = __fmul_rn(u, __fmaf_rn(w, s, 7.853981610e-01f));
  float c = __fmaf_rn(w, 3.541952728e-06f, -3.259613803e-04f);
  c = __fmaf_rn(w, c, 1.585433815e-02f);
  c = __fmaf_rn(w, c, -3.084251373e-01f);
  c = __fmaf_rn(w, c, 1.0f);

  const bool odd = (quarter & 1u) != 0;
  sine = odd ? c : s;
  cosine = odd ? s : c;
  if ((quarter & 2u) != 0) sine = -sine;
  if (((quarter + 1u) & 2u) != 0) cosine = -cosine;
  if (!finite) cosine = sine = nanf("");
}

// out(j, row[j] / rms(row) * weight[j]) for j < count, by one warp.
template <class Out>
__device__ __forceinline__ void warp_norm_row(const float* row, const float* weight, int count,
                                              int lane, const Out& out) {
  constexpr int kHeld = kMostState / kWarpLanes;
  static_assert(kMostHeadDim <= kMostState);
  float held[kHeld], weights[kHeld];
  double squares = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int j = i * kWarpLanes + lane;
    held[i] = j < count ? row[j] : 0.0f;
    weights[i] = j < count ? weight[j] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    squares = __fma_rn(double{held[i]}, double{held[i]}, squares);
  }
  const double mean = warp_sum(squares) / static_cast<double>(count);
  const double scale = 1.0 / sqrt(__dadd_rn(mean, kBcNormEps));
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int j = i * kWarpLanes + lane;
    if (j >= count) continue;
    out(j, static_cast<float>(__dmul_rn(__dmul_rn(double{held[i]}, scale), double{weights[i]})));
  }
}

// Rot(in) of one row [n] of K or Q that has its bias, by `step` threads: store(j, value) of
// load(j). A pair is read before it is written, both by one thread, so they may be one row.
template <class Load, class Store>
__device__ __forceinline__ void rotate_row(const TokenSizes& sizes, const float* cosine,
                                           const float* sine, int first, int step, const Load& load,
                                           const Store& store) {
  const int half = sizes.state / 2;
  for (int i = first; i < half; i += step) {
    const int at_a = sizes.mimo ? i : 2 * i;
    const int at_b = sizes.mimo ? half + i : 2 * i + 1;
    float a = load(at_a);
    float b = load(at_b);
    if (i < sizes.angles) {
      const float c = cosine[i];
      const float s = sine[i];
      const float turned_a = __fmaf_rn(-b, s, __fmul_rn(a, c));
      b = __fmaf_rn(b, c, __fmul_rn(a, s));
      a = turned_a;
    }
    store(at_a, a);
    store(at_b, b);
  }
  if (sizes.state % 2 != 0 && first == 0) store(sizes.state - 1, load(sizes.state - 1));
}

// What follows the read-out in one head: skip, (out-norm,) gate, sum over ranks.
struct HeadGate {
  const float* mimo_x;  // [r, p] of this head, or null
  const float* mimo_z;
  const float* mimo_o;
  float skip;
  int rank;
  int head_dim;
};

__device__ __forceinline__ HeadGate head_gate(const TokenSizes& sizes, const Mamba3Params& params,
                                              int head) {
  const std::int64_t at = std::int64_t{head} * sizes.rank * sizes.head_dim;
  HeadGate out{nullptr, nullptr, nullptr, params.skip[head], sizes.rank, sizes.head_dim};
  if (sizes.mimo) {
    out.mimo_x = params.mimo_x + at;
    out.mimo_z = params.mimo_z + at;
    out.mimo_o = params.mimo_o + at;
  }
  return out;
}

// Column `column` of a rank's own x.
__device__ __forceinline__ float own_x(const HeadGate& gate, int r, int column, float x) {
  return gate.mimo_x == nullptr ? x : x * gate.mimo_x[r * gate.head_dim + column];
}

__device__ __forceinline__ float add_skip(const HeadGate& gate, int r, int column, float x,
                                          float read_out) {
  return __fmaf_rn(gate.skip, own_x(gate, r, column, x), read_out);
}

// One rank's term of y.
__device__ __forceinline__ float gated(const HeadGate& gate, int r, int column, float z, float o) {
  if (gate.mimo_x == nullptr) return __fmul_rn(o, silu(z));
  const int at = r * gate.head_dim + column;
  return __fmul_rn(__fmul_rn(o, gate.mimo_o[at]), silu(z * gate.mimo_z[at]));
}

}  // namespace mamba3
