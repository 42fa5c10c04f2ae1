#include "ops/mamba3_common/mamba3_args.h"

#include <cmath>

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

}  // namespace

Mamba3Columns split_columns(const float* in_proj_rows, std::int64_t row_stride,
                            const Mamba3Dims& dims) {
  const std::int64_t inner = dims.heads * dims.head_dim;
  const std::int64_t shared = dims.rank * dims.groups * dims.state;
  Mamba3Columns columns;
  columns.row_stride = row_stride;
  const float* next = in_proj_rows;
  const auto take = [&next](std::int64_t count) {
    const float* begin = next;
    next += count;
    return begin;
  };
  columns.z = take(inner);
  columns.x = take(inner);
  columns.in_b = take(shared);
  columns.out_c = take(shared);
  columns.dt_raw = take(dims.heads);
  columns.decay_raw = take(dims.heads);
  columns.trap_raw = take(dims.heads);
  columns.angle_raw = take(dims.angles);
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

}  // namespace mamba3
