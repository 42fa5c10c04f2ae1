// What the kernels of mamba3_scan_backward on a GPU leave to be summed: over heads what belongs to
// B, C and the angles, over sequences what belongs to parameters. Each sum is one chain in a fixed
// order, so neither how heads are dealt out to calls nor how sequences are packed changes a bit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/mamba3_scan/carver.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

namespace mamba3 {

// Consecutive tokens of one sequence.
struct BackwardPiece {
  int begin;
  int end;  // begin: there is no such piece
  int sequence;
};

// Sequences cut at multiples of `tokens`. Only the GPU knows where they end: `count` bounds the
// number of pieces, the last ones of the array may be none.
struct BackwardPieces {
  int tokens;
  int count;
  BackwardPiece* pieces;  // [count]
  int* first;             // [q + 1] each sequence's first piece
};

BackwardPieces take_pieces(const Mamba3ScanBackwardArgs& args, std::int64_t tokens, Carver& carver);
void cut_pieces(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces,
                cudaStream_t stream);

// Of some neighbouring heads, blocks of them summed already; a block lies inside a group.
struct HeadPartials {
  int first_head;
  int heads;
  int heads_per_block;
  const float* grad_b;      // [blocks, t, r, n] with respect to what the bias is added to
  const float* grad_c;      // [blocks, t, r, n]
  const float* grad_phase;  // [blocks, t, s] with respect to the phase, times dt
};

// Sums over the heads of a group, and over all heads.
struct HeadTotals {
  float* grad_b;      // [t, r, g, n]
  float* grad_c;      // [t, r, g, n]
  float* grad_phase;  // [t, s]
};

HeadTotals take_head_totals(const Mamba3ScanBackwardArgs& args, Carver& carver);
// May be called for one range of heads after the other.
void add_head_partials(const Mamba3ScanBackwardArgs& args, const HeadPartials& partials,
                       const HeadTotals& totals, cudaStream_t stream);

// Assigns the gradients of the columns B, C and angle. norm_sums [pieces, 2, n]: those of the
// norms' weights, piece by piece.
void finish_shared_columns(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces,
                           const HeadTotals& totals, float* norm_sums, cudaStream_t stream);
// To grad_params: the pieces of a sequence first (in place), then one sequence after the other.
void add_norm_sums(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces,
                   float* norm_sums, cudaStream_t stream);

// Where in the sums of one head its parameters have their places.
struct HeadSumPlaces {
  int dt_bias;     // [1]
  int skip;        // [1]
  int in_b_bias;   // [r, n]
  int out_c_bias;  // [r, n]
  int mimo_x;      // [r, p] mimo only, as the next two
  int mimo_z;      // [r, p]
  int mimo_o;      // [r, p]
  int out_norm;    // [p] out_norm only
  int elements;
};

HeadSumPlaces head_sum_places(const Mamba3Dims& dims);

// To grad_params, in the same order as add_norm_sums(). head_sums [pieces, heads, elements].
void add_head_sums(const Mamba3ScanBackwardArgs& args, const BackwardPieces& pieces,
                   float* head_sums, int first_head, int heads, cudaStream_t stream);

}  // namespace mamba3
