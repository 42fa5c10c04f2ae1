// What the kernels of the general backward pass on a GPU are given. It takes sequences in chunks of
// few rows, a row for each rank of a token, and works in the matrix form of docs/SEMANTICS.md,
// section 9, in fp32. Chunks are all worked off at once, but for what runs from one to the next:
// that is left in the workspace, and walked through by kernels that do nothing else.
//
// The workspace is bounded by taking some heads at a time.
#pragma once

#include <cstdint>

#include "ops/mamba3_common/mamba3_token.cuh"
#include "ops/mamba3_scan_backward/scan_backward_columns_cuda.cuh"
#include "ops/mamba3_scan_backward/scan_backward_sums_cuda.h"

namespace mamba3 {

// Numbers, or sets of them, that a thread asks for before it uses the first.
constexpr int kBatch = 4;

// Quotients of numbers in a chunk by one that stays, by multiplication: exact while the product of
// both is below 2^32. A division takes ten times as many instructions.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int by) {
    if (by > 1) factor_ = static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + by - 1) / by);
  }
  __device__ __forceinline__ int quotient(int of) const {
    return factor_ == 0 ? of : static_cast<int>(__umulhi(static_cast<unsigned>(of), factor_));
  }

 private:
  std::uint32_t factor_ = 0;  // by one
};

// What the recurrence makes of a token of one head.
struct ChunkTerms {
  double sum;    // of log decays since the chunk's start, its own included
  double dt;     //
  float now;     // gamma
  float carry;   // the weight of the token before's product, before this token's decay
  float source;  // now, and the next token's carry: the weight of its product for later tokens
  float decay;   // exp(sum)
  float to_end;  // exp(sum at the chunk's end - sum)
  float fill;
};

// With respect to a token's numbers, each as if the others did not hang on it.
struct ChunkTermGradients {
  double log_decay;
  double now;
  double source;
};

// h: the heads in hand, `heads` from `first_head` on. pp: p, rounded up to whole vectors.
struct BackwardJobCuda {
  TokenSizes sizes;
  Mamba3Params params;
  Mamba3Columns columns;
  InputColumn z, x, grad_y;
  GradientColumns out;
  Mamba3States states;
  Mamba3StateGradients grad_states;
  HeadSumPlaces places;
  const std::int64_t* cu_seqlens;
  const std::int32_t* slots;
  BackwardPieces chunks;
  std::int64_t tokens;
  int sequences;
  int p_stride;  // pp
  int first_head;
  int heads;
  int end_parts;
  Divisor by_rank;
  Divisor by_half;      // whole pairs of a row of K
  Divisor by_pairs;     // likewise, and what is left alone
  Divisor by_head_dim;  // p
  Divisor by_p_stride;
  Divisor by_x_pitch;

  double* turn_rates;  // [t, s] phases move by so much of it
  float* normed_b;     // [t, r, g, n]
  float* normed_c;     // [t, r, g, n]

  ChunkTerms* terms;               // [h, t]
  float* rotations;                // [h, t, 2, s] cosines, sines
  std::uint32_t* turns;            // [chunks, h, s] moved by a chunk; then, before it
  float* starts;                   // [chunks, h, n, pp] added by a chunk; then, the state before it
  float* ends;                     // [chunks, h, n, pp] the same of the gradient, backward
  float* end_products;             // [chunks, h, end_parts] their products, summed
  float* grad_o;                   // [h, t, r, pp] with respect to the read-outs
  ChunkTermGradients* term_grads;  // [h, t]
  float* grad_b;                   // [h, t, r, n] K; then, the gradients of HeadPartials
  float* grad_c;                   // [h, t, r, n] Q; then, likewise
  float* grad_phase;               // [h, t, s] of the chunk's tokens from there on; then, of all
  float* phases;                   // [chunks, h, s] of a chunk; then, behind it
  float* grad_carry;               // [q, h] of sequences' first tokens
  float* head_sums;                // [chunks, h, places.elements]

  // Of the h-th head in hand.
  __device__ std::int64_t token_at(int h, std::int64_t token) const { return h * tokens + token; }
  __device__ std::int64_t chunk_at(std::int64_t chunk, int h) const { return chunk * heads + h; }
  __host__ __device__ std::int64_t matrix() const { return std::int64_t{sizes.state} * p_stride; }
  __device__ float* sums_of(std::int64_t chunk, int h) const {
    return head_sums + chunk_at(chunk, h) * places.elements;
  }
};

}  // namespace mamba3
