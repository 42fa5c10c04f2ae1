// What one block of the step on a GPU prepares in its shared memory while its state is on the way:
// the token's numbers, K and Q of every rank, x with its weights. K, x and the phases of the state
// are moved on here.
#pragma once

#include <cstdint>

#include "device/kernel_helpers.cuh"
#include "ops/mamba3_common/mamba3_token.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kRows = 8;

struct StepJob {
  TokenSizes sizes;
  Mamba3Params params;
  Mamba3Columns columns;
  const std::int32_t* slots;
  Mamba3States states;
  float* y;
  std::int64_t y_stride;
  int threads_across;  // that share the columns of a row of the state
  int groups;          // of so many threads; each takes kRows rows at a time
};

// The shared memory of one block. Rows are `pitch` apart.
struct Shared {
  int pitch;
  TokenWeights* weights;
  double* half_tanh;     // [s]
  std::uint32_t* turns;  // [s]
  float* cosine;         // [s]
  float* sine;           // [s]
  float* k_previous;     // [r, pitch]
  float* k_now;          // [r, pitch]
  float* q_now;          // [r, pitch]
  float* x;              // [p]
  float* x_previous;     // [p]
  float* z;              // [p]
  float* x_carry;        // [r, p] previous X, times (1 - lam) dt alpha
  float* x_now;          // [r, p] X, times lam dt
  // [kRows, threads] vectors: each thread's first piece of the state. When the thread has taken
  // it, [r, threads]: its part of the read-out (there are at most kRows ranks).
  float* pieces;
  float* read_out;  // [r, p]

  __host__ __device__ Shared(const TokenSizes& sizes, int vector, SharedParts& parts) {
    pitch = (sizes.state + kRows - 1) / kRows * kRows;
    weights = parts.take<TokenWeights>(1);
    half_tanh = parts.take<double>(sizes.angles);
    turns = parts.take<std::uint32_t>(sizes.angles);
    cosine = parts.take<float>(sizes.angles);
    sine = parts.take<float>(sizes.angles);
    k_previous = parts.take<float>(sizes.rank * pitch);
    k_now = parts.take<float>(sizes.rank * pitch);
    q_now = parts.take<float>(sizes.rank * pitch);
    x = parts.take<float>(sizes.head_dim);
    x_previous = parts.take<float>(sizes.head_dim);
    z = parts.take<float>(sizes.head_dim);
    x_carry = parts.take<float>(sizes.rank * sizes.head_dim);
    x_now = parts.take<float>(sizes.rank * sizes.head_dim);
    pieces = parts.take<float>(kRows * kThreads * vector);
    read_out = parts.take<float>(sizes.rank * sizes.head_dim);
  }
};

// One row's head: where its inputs, its state and its output are.
struct Place {
  int head;
  std::int64_t from;  // of the row, in the columns
  std::uint32_t* turns;
  float* ssm;
  float* k;  // ranks are heads * n apart
  float* v;
  float* y;

  __device__ explicit Place(const StepJob& job) {
    const TokenSizes& sizes = job.sizes;
    const std::int64_t row = blockIdx.x / sizes.heads;
    head = static_cast<int>(blockIdx.x % sizes.heads);
    from = row * job.columns.row_stride;
    const std::int64_t slot = job.slots[row];
    const std::int64_t h = head;
    turns = job.states.turns + slot * job.states.turns_stride + h * sizes.angles;
    ssm = job.states.ssm + slot * job.states.ssm_stride + h * sizes.state * sizes.head_dim;
    k = job.states.k + slot * job.states.k_stride + h * sizes.state;
    v = job.states.v + slot * job.states.v_stride + h * sizes.head_dim;
    y = job.y + row * job.y_stride + h * sizes.head_dim;
  }
};

// What can be read at once, and what follows from it without the rest: the numbers by the first
// thread, normalised and biased rows by the other warps, angles from the last threads on.
__device__ void prepare_inputs(const StepJob& job, const Place& at, const Shared& s) {
  const TokenSizes& sizes = job.sizes;
  const Mamba3Columns& in = job.columns;
  const int thread = static_cast<int>(threadIdx.x);
  const int n = sizes.state;
  for (int i = thread; i < sizes.rank * n; i += kThreads) {
    const int r = i / n;
    s.k_previous[r * s.pitch + i - r * n] = at.k[r * std::int64_t{sizes.heads} * n + i - r * n];
  }
  for (int i = thread; i < sizes.head_dim; i += kThreads) {
    const std::int64_t own = at.from + std::int64_t{at.head} * sizes.head_dim + i;
    const float x = in.x[own];
    s.z[i] = in.z[own];
    s.x[i] = x;
    s.x_previous[i] = at.v[i];
    at.v[i] = x;
  }
  for (int i = kThreads - 1 - thread; i < sizes.angles; i += kThreads) {
    s.turns[i] = at.turns[i];
    s.half_tanh[i] = turn_rate(sizes, in.angle_raw, at.from, i);
  }
  if (thread == 0) {
    const std::int64_t own = at.from + at.head;
    *s.weights = token_weights(sizes, in.dt_raw[own], job.params.dt_bias[at.head],
                               in.decay_raw[own], in.trap_raw[own]);
  }
}

__device__ void prepare_norms(const StepJob& job, const Place& at, const Shared& s) {
  const TokenSizes& sizes = job.sizes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const int group = at.head / (sizes.heads / sizes.groups);
  // Not the first warp: it has the numbers to do.
  for (int i = warp - 1; i >= 0 && i < 2 * sizes.rank; i += kWarps - 1) {
    const int r = i / 2;
    const bool is_k = i % 2 == 0;
    const std::int64_t from = at.from + std::int64_t{r * sizes.groups + group} * sizes.state;
    const std::int64_t bias_at = (std::int64_t{at.head} * sizes.rank + r) * sizes.state;
    const float* row = (is_k ? job.columns.in_b : job.columns.out_c) + from;
    const float* norm = is_k ? job.params.in_b_norm : job.params.out_c_norm;
    const float* bias = (is_k ? job.params.in_b_bias : job.params.out_c_bias) + bias_at;
    float* out = (is_k ? s.k_now : s.q_now) + r * s.pitch;
    warp_norm_row(row, norm, sizes.state, lane,
                  [&](int j, float value) { out[j] = __fadd_rn(value, bias[j]); });
  }
}

// Moves the phases, and gives x its weights.
__device__ void turn_and_weigh(const StepJob& job, const Place& at, const HeadGate& gate,
                               const Shared& s) {
  const TokenSizes& sizes = job.sizes;
  const TokenWeights& weights = *s.weights;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < sizes.angles; i += kThreads) {
    bool finite = true;
    const std::uint32_t turns = s.turns[i] + turns_moved(s.half_tanh[i], weights.turning, finite);
    at.turns[i] = turns;
    cos_sin_of_turns(turns, finite, s.cosine[i], s.sine[i]);
  }
  for (int i = kThreads - 1 - thread; i < sizes.rank * sizes.head_dim; i += kThreads) {
    const int r = i / sizes.head_dim;
    const int column = i - r * sizes.head_dim;
    s.x_carry[i] = weights.carry * own_x(gate, r, column, s.x_previous[column]);
    s.x_now[i] = weights.now * own_x(gate, r, column, s.x[column]);
  }
}

// K and Q in place; K into the state too.
__device__ void rotate(const StepJob& job, const Place& at, const Shared& s) {
  const TokenSizes& sizes = job.sizes;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  for (int i = warp; i < 2 * sizes.rank; i += kWarps) {
    const int r = i / 2;
    const bool is_k = i % 2 == 0;
    float* row = (is_k ? s.k_now : s.q_now) + r * s.pitch;
    float* state = at.k + r * std::int64_t{sizes.heads} * sizes.state;
    rotate_row(
        sizes, s.cosine, s.sine, lane, kWarpLanes, [&](int j) { return row[j]; },
        [&](int j, float value) {
          row[j] = value;
          if (is_k) state[j] = value;
        });
  }
}

}  // namespace
}  // namespace mamba3
