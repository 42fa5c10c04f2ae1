// The Mamba-3 recurrence for one more token of many sequences; states are updated in place.
#pragma once

#include <cstdint>
#include <span>

#include "mamba3/context.h"
#include "ops/mamba3_common/kernel_path.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

struct Mamba3StepArgs {
  Mamba3Dims dims;
  Mamba3Params params;
  Mamba3Columns columns;                // b rows, one token each
  std::span<const std::int32_t> slots;  // [b], all different
  Mamba3States states;                  // read and overwritten; with a ring: mamba3_ring_ops.h
  Matrix y;                             // [b, h * p], rows may be strided  bf16: with a ring
  // With a ring: the kernel just before in the stream wrote none of states, ring and slots (say, it
  // made the columns), so the step may begin to read them before that kernel has ended.
  bool states_are_old = false;
};

// The kernels that a GPU of this compute capability (90 for 9.0) takes.
KernelPath mamba3_step_path(const Mamba3Dims& dims, int compute_capability);

std::size_t mamba3_step_workspace_bytes(const Mamba3StepArgs& args, const Context& ctx);

// A row's bits do not depend on its neighbours, its slot (unless its ring is staggered), the batch
// size or the thread count.
void mamba3_step(const Mamba3StepArgs& args, Context& ctx);

}  // namespace mamba3
