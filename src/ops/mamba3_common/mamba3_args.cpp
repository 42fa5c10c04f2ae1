#include "ops/mamba3_common/mamba3_args.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/arena.h"
#include "core/check.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kMostRank = 8;
// Far above any model; products of the sizes below stay far below 2^63.
constexpr std::int64_t kMostExtent = std::int64_t{1} << 20;
constexpr std::int64_t kMostStateElements = std::int64_t{1} << 40;

void check_extent(const char* name, std::int64_t value) {
  check_input(value >= 1 && value <= kMostExtent, name, " is ", value, "; expected 1 to ",
              kMostExtent, "; the layer's sizes are wrong");
}

void check_present(const char* name, const void* data, bool needed = true) {
  check_input(!needed || data != nullptr, "the layer's ", name,
              " is missing; expected a tensor; pass it");
}

void check_stride(const char* name, std::int64_t stride, std::int64_t least, std::int64_t rows) {
  check_input(
      rows <= 1 || (stride >= least && stride <= std::numeric_limits<std::int64_t>::max() / rows),
      name, " is ", stride, "; expected at least ", least, " and no overflow over ", rows, " rows");
}

}  // namespace

Mamba3Columns split_columns(const float* in_proj_rows, std::int64_t row_stride,
                            const Mamba3Dims& dims, bool zx_elsewhere) {
  const std::int64_t inner = dims.heads * dims.head_dim;
  const std::int64_t shared = dims.rank * dims.groups * dims.state;
  Mamba3Columns columns;
  columns.row_stride = row_stride;
  if (in_proj_rows == nullptr) return columns;  // no rows: nothing to point at
  const float* next = in_proj_rows;
  const auto take = [&next](std::int64_t count) {
    const float* begin = next;
    next += count;
    return begin;
  };
  if (!zx_elsewhere) {
    columns.z = take(inner);
    columns.x = take(inner);
  }
  columns.in_b = take(shared);
  columns.out_c = take(shared);
  columns.dt_raw = take(dims.heads);
  columns.decay_raw = take(dims.heads);
  columns.trap_raw = take(dims.heads);
  if (dims.angle_columns() > 0) columns.angle_raw = take(dims.angles);
  return columns;
}

void check_dims(const Mamba3Dims& dims) {
  check_extent("heads", dims.heads);
  check_extent("head dim", dims.head_dim);
  check_extent("state size", dims.state);
  check_input(dims.heads * dims.head_dim <= kMostStateElements / dims.state,
              "one state has heads x head dim x state size = ", dims.heads, " x ", dims.head_dim,
              " x ", dims.state, " elements; expected at most ", kMostStateElements);
  check_input(dims.groups >= 1 && dims.heads % dims.groups == 0, "groups is ", dims.groups,
              " with ", dims.heads, " heads; expected a divisor of the heads");
  check_input(dims.rank >= 1 && dims.rank <= kMostRank, "rank is ", dims.rank, "; expected 1 to ",
              kMostRank);
  check_input(dims.mimo || dims.rank == 1, "rank is ", dims.rank,
              " without MIMO; expected 1: only a MIMO layer has ranks");
  check_input(dims.angles >= 0 && 2 * dims.angles <= dims.state, "angles is ", dims.angles,
              " with state size ", dims.state, "; expected 0 to half the state size");
  check_input(!dims.mimo || dims.state % 2 == 0, "state size is ", dims.state,
              " in a MIMO layer; expected an even number: its rotation pairs the two halves");
  check_input(std::isfinite(dims.a_floor) && dims.a_floor >= 0, "A floor is ", dims.a_floor,
              "; expected a finite number, 0 or above");
}

void check_params(const Mamba3Dims& dims, const Mamba3Params& params) {
  check_present("dt_bias", params.dt_bias);
  check_present("D", params.skip);
  check_present("B_bias", params.in_b_bias);
  check_present("C_bias", params.out_c_bias);
  check_present("B_norm.weight", params.in_b_norm);
  check_present("C_norm.weight", params.out_c_norm);
  check_present("mimo_x", params.mimo_x, dims.mimo);
  check_present("mimo_z", params.mimo_z, dims.mimo);
  check_present("mimo_o", params.mimo_o, dims.mimo);
  check_present("norm.weight", params.out_norm, dims.out_norm);
}

void check_columns(const Mamba3Dims& dims, const Mamba3Columns& columns, std::int64_t rows) {
  if (rows == 0) return;
  const bool bf16 = columns.z_bf16 != nullptr;
  check_present("z column", columns.z, !bf16);
  check_present("x column", columns.x, !bf16);
  check_present("x column in bf16", columns.x_bf16, bf16);
  check_present("B column", columns.in_b);
  check_present("C column", columns.out_c);
  check_present("dt column", columns.dt_raw);
  check_present("A column", columns.decay_raw);
  check_present("trap column", columns.trap_raw);
  check_present("angle column", columns.angle_raw, dims.angle_columns() > 0);
  const std::int64_t inner = dims.heads * dims.head_dim;
  const std::int64_t widest = std::max(bf16 ? 0 : inner, dims.rank * dims.groups * dims.state);
  if (bf16) check_stride("the row stride of z and x", columns.zx_stride, inner, rows);
  check_stride("the row stride of the columns", columns.row_stride, widest, rows);
}

std::size_t check_slots_workspace_bytes(std::span<const std::int32_t> slots) {
  return slots.size_bytes() + Arena::kAlignBytes;
}

void check_states(const Mamba3Dims& dims, const Mamba3States& states,
                  std::span<const std::int32_t> slots, Context& ctx) {
  if (slots.empty()) return;
  const std::int64_t inner = dims.heads * dims.head_dim;
  check_present("turns state", states.turns, dims.angles > 0);
  check_present("ssm state", states.ssm);
  check_present("k state", states.k);
  check_present("v state", states.v);
  check_stride("turns_stride", states.turns_stride, dims.heads * dims.angles, states.slots);
  check_stride("ssm_stride", states.ssm_stride, inner * dims.state, states.slots);
  check_stride("k_stride", states.k_stride, dims.rank * dims.heads * dims.state, states.slots);
  check_stride("v_stride", states.v_stride, inner, states.slots);

  if (ctx.gpu()) return;  // the slots lie in its memory; the caller has checked them
  ArenaScope scope(ctx.workspace());
  const auto count = static_cast<std::int64_t>(slots.size());
  auto* sorted = scope.allocate<std::int32_t>(count);
  std::copy(slots.begin(), slots.end(), sorted);
  std::sort(sorted, sorted + count);
  check_input(sorted[0] >= 0 && sorted[count - 1] < states.slots, "slots go from ", sorted[0],
              " to ", sorted[count - 1], "; expected 0 to ", states.slots - 1);
  const auto* twice = std::adjacent_find(sorted, sorted + count);
  check_input(twice == sorted + count, "slot ", twice == sorted + count ? 0 : *twice,
              " is given twice; expected different slots: two sequences cannot share a state");
}

void check_scan_output(const Mamba3Dims& dims, const ConstMatrix& y, std::int64_t rows) {
  const std::int64_t inner = dims.heads * dims.head_dim;
  check_input(y.shape[0] == rows && y.shape[1] == inner, "y is ", shape_string(y.shape),
              "; expected [", rows, ", ", inner, "]: a row for each token, heads x head dim wide");
  check_input(rows == 0 || y.data != nullptr, "y has no memory; expected ", rows, " rows");
  check_input(inner == 1 || y.stride[1] == 1, "the inner stride of y is ", y.stride[1],
              "; expected 1");
  check_stride("the row stride of y", y.stride[0], inner, rows);
}

}  // namespace mamba3
