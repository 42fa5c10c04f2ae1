// The backward pass of mamba3_scan: from the gradient of what it wrote to that of what it read.
//
// Nothing but the scan's own inputs is kept from the forward pass: the states that it needs are
// computed again. The call is worked off in parts, slabs of tokens on a CPU and some heads at a
// time on a GPU, so that they take little memory.
//
// Formulas: docs/SEMANTICS.md, section 9.
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"
#include "mamba3/context.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

// Gradients of Mamba3Columns: rows `row_stride` elements apart, fp32. On a GPU, with bf16_products,
// they may be rounded to bf16 instead: `rows_bf16` is then all of them, in in_proj's order, with as
// many columns of zeros behind as are wanted, and the other pointers are null.
struct Mamba3ColumnGradients {
  std::int64_t row_stride = 0;
  float* z = nullptr;          // [t, h, p]
  float* x = nullptr;          // [t, h, p]
  float* in_b = nullptr;       // [t, r, g, n]
  float* out_c = nullptr;      // [t, r, g, n]
  float* dt_raw = nullptr;     // [t, h]
  float* decay_raw = nullptr;  // [t, h]
  float* trap_raw = nullptr;   // [t, h]
  float* angle_raw = nullptr;  // [t, s]; null where there are no such columns
  Bf16* rows_bf16 = nullptr;   // [t, e + zero_columns]
  std::int64_t zero_columns = 0;
};

// A buffer [t, e] cut as split_columns() cuts in_proj's output.
Mamba3ColumnGradients split_column_gradients(float* rows, std::int64_t row_stride,
                                             const Mamba3Dims& dims);

// Gradients of Mamba3Params: the same shapes.
struct Mamba3ParamGradients {
  float* dt_bias = nullptr;     // [h]
  float* skip = nullptr;        // [h]
  float* in_b_bias = nullptr;   // [h, r, n]
  float* out_c_bias = nullptr;  // [h, r, n]
  float* in_b_norm = nullptr;   // [n]
  float* out_c_norm = nullptr;  // [n]
  float* mimo_x = nullptr;      // [h, r, p]  mimo only
  float* mimo_z = nullptr;      // [h, r, p]  mimo only
  float* mimo_o = nullptr;      // [h, r, p]  mimo only
  float* out_norm = nullptr;    // [h * p]    out_norm only
};

// Gradients of Mamba3States, slot by slot as there. Turns are integers, so the gradient of a phase
// is that of the angle in radians.
struct Mamba3StateGradients {
  float* angle = nullptr;  // [slot, h, s]
  float* ssm = nullptr;    // [slot, h, n, p]
  float* k = nullptr;      // [slot, r, h, n]
  float* v = nullptr;      // [slot, h, p]
  std::int64_t slots = 0;
  std::int64_t angle_stride = 0;
  std::int64_t ssm_stride = 0;
  std::int64_t k_stride = 0;
  std::int64_t v_stride = 0;
};

struct Mamba3ScanBackwardArgs {
  Mamba3Dims dims;
  Mamba3Params params;
  Mamba3Columns columns;                     // t tokens, as mamba3_scan read them; fp32
  std::span<const std::int64_t> cu_seqlens;  // [q + 1], as mamba3_scan's
  std::span<const std::int32_t> slots;       // [q], all different
  Mamba3States states;  // the states that the scan started from; read, never written
  ConstMatrix grad_y;   // [t, h * p], rows may be strided; read
  // Assigned, every element of every row. Not the memory of `columns` or grad_y.
  Mamba3ColumnGradients grad_columns;
  // In the slots above. Read: with respect to the state after the last token (zeros where the loss
  // does not see it). Then assigned: with respect to the state before the first.
  Mamba3StateGradients grad_states;
  Mamba3ParamGradients grad_params;  // accumulated: the sequences' sums are added, in their order
  // As Mamba3ScanArgs has it. On a GPU z, x and grad_y may then be bf16.
  bool bf16_products = false;
};

// Tokens of one sequence that are worked off between two stored states, a multiple of the chunk.
std::int64_t mamba3_scan_backward_slab_tokens(const Mamba3Dims& dims);

// Workspace taken from ctx.workspace() during the call.
std::size_t mamba3_scan_backward_workspace_bytes(const Mamba3ScanBackwardArgs& args,
                                                 const Context& ctx);

// The same input gives the same bits for any thread count; gradients of columns and states also for
// any packing and any neighbours. A sequence's own sums enter those of the parameters whole, so
// packing sequences or giving them one after the other is the same there too. A number that is not
// finite may make all gradients of its sequence so.
void mamba3_scan_backward(const Mamba3ScanBackwardArgs& args, Context& ctx);

}  // namespace mamba3
