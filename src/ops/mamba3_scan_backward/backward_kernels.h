// The steps of mamba3_scan_backward that run on a worker, compiled for every instruction set and
// chosen at run time.
//
// A group of sequences is worked off in rounds, the last slab of each sequence first. Before the
// rounds advance_part() walks forward over all slabs but the last and leaves the states between
// them. In a round each part (a sequence's slab) is walked by each block of heads; what is summed
// over heads waits in the slab's buffers until reduce_chunk() takes it, in a fixed order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/mamba3_scan/carver.h"
#include "ops/mamba3_scan/scan_kernels.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

namespace mamba3 {

struct BackwardSizes {
  explicit BackwardSizes(const Mamba3Dims& dims);

  ChunkSizes chunk;
  std::int64_t slab_tokens;      // most tokens of a part, a multiple of chunk.tokens
  std::int64_t slab_chunks;      // most chunks of a part
  std::int64_t round_tokens;     // most tokens of a round's parts together
  std::int64_t round_parts;      // most parts of a round
  std::int64_t heads_per_block;  // neighbours of one group that are walked one after the other
  std::int64_t blocks;           // of heads
};

// A slab of one sequence.
struct BackwardPart {
  std::int64_t slot = 0;
  std::int64_t begin = 0;  // tokens
  std::int64_t end = 0;
  std::int64_t sequence = 0;  // in its group: whose sums it adds to
  std::int64_t offset = 0;    // of its first token in the slab buffers
  std::int64_t chunk = 0;     // of its first chunk among the round's
  std::int64_t start = -1;    // the stored state that it starts from; -1: that of its slot
  std::int64_t after = 0;     // the stored state that advance_part() leaves
  bool fresh = false;         // the first of its sequence to be walked: sums start from zero
};

// What the walks of a round leave for the sums over heads, and what all heads share.
struct SlabBuffers {
  SlabBuffers(const Mamba3Dims& dims, const BackwardSizes& sizes, std::int64_t capacity,
              std::int64_t chunks, Carver& carver);

  TokenBuffers tokens;
  std::int64_t row_stride;    // from one block's rows to the next one's
  std::int64_t phase_stride;  // likewise
  float* grad_b;              // [blocks, capacity, r, n] with respect to the normalised rows
  float* grad_c;              // [blocks, capacity, r, n]
  float* grad_phase;          // [blocks, capacity, s] times dt
  float* norm_sums;           // [chunks, 2, n] of B_norm and C_norm
};

// States between the slabs of the group's sequences, in the layout of Mamba3States without v, which
// is the x of the token before.
struct StoredStates {
  StoredStates(const Mamba3Dims& dims, std::int64_t count, Carver& carver);

  std::uint32_t* turns;  // [count, h, s]
  float* ssm;            // [count, h, n, p]
  float* k;              // [count, r, h, n]
};

// Gradients of one head's parameters, of one sequence.
struct HeadSums {
  HeadSums(const Mamba3Dims& dims, float* memory);
  static std::int64_t elements(const Mamba3Dims& dims);

  float* dt_bias;     // [1]
  float* skip;        // [1]
  float* in_b_bias;   // [r, n]
  float* out_c_bias;  // [r, n]
  float* mimo_x;      // [r, p] mimo only, as the next two
  float* mimo_z;      // [r, p]
  float* mimo_o;      // [r, p]
  float* out_norm;    // [p] out_norm only
};

// What a worker needs: a chunk's memory of the forward scan, and that of its gradients. Strides are
// those of ChunkSizes.
struct BackwardScratch {
  BackwardScratch(const Mamba3Dims& dims, const BackwardSizes& sizes, Carver& carver);

  ChunkScratch chunk;    // its scores: weighted, zeros above the diagonal; its k and
                         // rotations point into those of the slab; its state is not used
  float* states;         // [slab chunks, n, p] at each chunk's start
  float* keys;           // [slab chunks, rows, n] K
  float* rotations;      // [slab chunks, 2, c, s] cosines and sines
  std::uint32_t* turns;  // [s]
  float* decays;         // [c, rows] exp(sum_t - sum_j) for earlier tokens j
  float* raw_scores;     // [rows, rows] q k_t, on and below the diagonal
  float* grad_scores;    // [rows, rows]
  float* x_t;            // [p, rows]
  float* from_start;     // [rows, p] the part of y that comes from the state
  float* grad_o;         // [rows, p] with respect to the read-out
  float* grad_o_start;   // [rows, p] times the row's decay since the chunk's start
  float* grad_end;       // [rows, p] k times the gradient of the state at the chunk's end
  float* grad_x;         // [rows, p]
  float* grad_q;         // [rows, n]
  float* grad_k;         // [rows, n]
  float* grad_state;     // [n, p] with respect to the state in hand
  float* grad_state_t;   // [p, n]
  float* state_t;        // [p, n]
  float* later;  // [rows] sum over later tokens of the scores' part of the source's gradient
  float* end;    // [rows] the state's part of it
  float* phase;  // [s] gradient of the phases, summed over the tokens behind
  // Per token: parts of the gradients of log decay and of `now`.
  double* log_inside;  // [c]
  double* log_start;   // [c]
  double* now;         // [c]
};

struct BackwardJob {
  const Mamba3ScanBackwardArgs& args;
  BackwardSizes sizes;
  SlabBuffers slab;
  StoredStates stored;
  float* head_sums;    // [sequences, h, HeadSums]
  std::byte* scratch;  // one BackwardScratch a worker
  std::size_t scratch_bytes;
};

// Walks forward over a part and stores the state after it.
void advance_part(const BackwardJob& job, const BackwardPart& part, std::int64_t head, int worker);

// From the gradient of the state after the part to that of the state before it; everything in
// between that belongs to the heads of one block.
void walk_part(const BackwardJob& job, const BackwardPart& part, std::int64_t block, int worker);

// Sums over heads for the chunk-th chunk of a part: the gradients of its B, C and angles.
void reduce_chunk(const BackwardJob& job, const BackwardPart& part, std::int64_t chunk);

}  // namespace mamba3
