// Inside the step: one worker's memory, and the call with checked arguments.
#pragma once

#include "core/arena.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3 {

struct StepScratch {
  double* half_tanh;  // [s]
  float* cosine;      // [s]
  float* sine;        // [s]
  float* normed_b;    // [r, n]
  float* normed_c;    // [r, n]
  float* q;           // [r, n]
  // The rows that the update of the state multiplies with, [r, n] each, but interleaved four by
  // four: ranks 0 to 3 as [n, 4], then the rest as [n, r - 4]. So a row n of the state finds its
  // coefficients in a few places.
  float* k_previous;
  float* k_now;
  float* q_now;
  float* x_carry;   // [r, p] previous X, times (1 - lam) dt alpha
  float* x_now;     // [r, p] X, times lam dt
  float* read_out;  // [r, p]
};

std::size_t step_scratch_bytes(const Mamba3Dims& dims);
StepScratch take_step_scratch(ArenaScope& scope, const Mamba3Dims& dims);

void mamba3_step_cpu(const Mamba3StepArgs& args, Context& ctx);

}  // namespace mamba3
