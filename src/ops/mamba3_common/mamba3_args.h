// What mamba3_scan and mamba3_step share: the shapes, a layer's small parameters, the columns of
// in_proj, the state.
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"
#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/tensor.h"
#include "ops/mamba3_common/mamba3_ring.h"

namespace mamba3 {

struct Mamba3Dims {
  std::int64_t heads = 0;     // h
  std::int64_t head_dim = 0;  // p
  std::int64_t state = 0;     // n
  std::int64_t groups = 1;    // g, divides h
  std::int64_t rank = 1;      // r
  std::int64_t angles = 0;    // s, at most n / 2
  bool fixed_steps = false;   // phases move by fixed_step_turns(): there are no angle columns
  bool mimo = false;          // pairs (i, i + n/2) and mimo_x/z/o; otherwise pairs (2i, 2i + 1)
  bool out_norm = false;
  float a_floor = 1e-4f;
  AActivation a_activation = AActivation::kHeavyTail;

  std::int64_t angle_columns() const { return fixed_steps ? 0 : angles; }
};

// The small parameters of one mixer, all contiguous fp32.
struct Mamba3Params {
  const float* dt_bias = nullptr;     // [h]
  const float* skip = nullptr;        // [h]        the tensor named D
  const float* in_b_bias = nullptr;   // [h, r, n]
  const float* out_c_bias = nullptr;  // [h, r, n]
  const float* in_b_norm = nullptr;   // [n]
  const float* out_c_norm = nullptr;  // [n]
  const float* mimo_x = nullptr;      // [h, r, p]  mimo only
  const float* mimo_z = nullptr;      // [h, r, p]  mimo only
  const float* mimo_o = nullptr;      // [h, r, p]  mimo only
  const float* out_norm = nullptr;    // [h * p]    out_norm only
};

// The columns of one in_proj output, fp32. A row is one token; the innermost dimensions are
// contiguous, rows may be further apart (`row_stride` elements), so the views usually point into
// one [t, e] buffer.
struct Mamba3Columns {
  std::int64_t row_stride = 0;
  const float* z = nullptr;          // [t, h, p]
  const float* x = nullptr;          // [t, h, p]
  const float* in_b = nullptr;       // [t, r, g, n]  before RMSNorm, bias and rotation
  const float* out_c = nullptr;      // [t, r, g, n]
  const float* dt_raw = nullptr;     // [t, h]
  const float* decay_raw = nullptr;  // [t, h]
  const float* trap_raw = nullptr;   // [t, h]
  const float* angle_raw = nullptr;  // [t, s]; null where there are none
  // Where an op takes z and x in bf16 they may lie elsewhere, rows `zx_stride` elements apart; the
  // two pointers above are null then.
  const Bf16* z_bf16 = nullptr;  // [t, h, p]
  const Bf16* x_bf16 = nullptr;  // [t, h, p]
  std::int64_t zx_stride = 0;
};

// The in_proj buffer [t, e] cut into its columns, in the package's order z, x, B, C, dt, A, trap,
// angle. With `zx_elsewhere` its rows begin with B.
Mamba3Columns split_columns(const float* in_proj_rows, std::int64_t row_stride,
                            const Mamba3Dims& dims, bool zx_elsewhere = false);

// The states of one layer for many sequences. A slot is one sequence; the parts of slot i start at
// part + i * slot_stride (in elements of that part). Inside a slot everything is contiguous. `ssm`
// is stored [h, n, p], transposed against the canonical tuple's [h, p, n]: both kernels then update
// it with vectors along p and never add across a vector. Phi is kept as unsigned 32-bit turns: 2^32
// is a full turn, sums wrap exactly and are associative, so prefill, stepping and replay agree bit
// for bit.
struct Mamba3States {
  std::uint32_t* turns = nullptr;  // [slot, h, s]
  float* ssm = nullptr;            // [slot, h, n, p]
  float* k =
      nullptr;  // [slot, r, h, n]  K of the last token: normalised, biased, rotated, unscaled
  float* v = nullptr;  // [slot, h, p]     x of the last token, without mimo_x
  std::int64_t slots = 0;
  std::int64_t turns_stride = 0;
  std::int64_t ssm_stride = 0;
  std::int64_t k_stride = 0;
  std::int64_t v_stride = 0;
  Mamba3Ring ring;  // of steps on a GPU; what reads whole states needs them settled
};

// What both ops check at entry, naming the value that was found.
void check_dims(const Mamba3Dims& dims);
void check_params(const Mamba3Dims& dims, const Mamba3Params& params);
void check_columns(const Mamba3Dims& dims, const Mamba3Columns& columns, std::int64_t rows);
// Slots must exist and differ; strides must leave room for a slot.
void check_states(const Mamba3Dims& dims, const Mamba3States& states,
                  std::span<const std::int32_t> slots, Context& ctx);
std::size_t check_slots_workspace_bytes(std::span<const std::int32_t> slots);
// y [rows, h * p]
void check_scan_output(const Mamba3Dims& dims, const ConstMatrix& y, std::int64_t rows);

}  // namespace mamba3
