// Many rows: products of tiles, which are the tasks of the thread pool. A tile is some rows times
// some outputs (a slice of the weights). Processors that multiply bf16 do so by oneDNN, which uses
// bf16 weights where they lie; everything else goes through our own product in fp32. Weights that
// have to be rewritten are so slice by slice, into memory of the worker: there is never a second
// copy of a whole matrix.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "ops/linear/gemm_f32.h"
#include "ops/linear/linear_paths.h"
#include "ops/linear/onednn_gemm.h"
#include "ops/linear/pack_weights.h"
#include "ops/linear/processor.h"
#include "ops/linear/round_bf16.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kOutsUnit = 16;  // oneDNN makes 48 outputs at a time, at an end 32 or 16
static_assert(kOutsUnit == kGemmPanel);
constexpr std::int64_t kFewestOuts = 96;

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Rows of 32 more elements than needed: never a power of two apart.
std::int64_t padded_stride(std::int64_t k) {
  return divide_up(k, 32) * 32 + 32;
}

struct Plan {
  bool bf16 = false;    // products of bf16 by oneDNN; otherwise of f32 by ourselves
  bool round = false;   // f32, but the numbers are those of bf16
  bool copy_w = false;  // a slice of the weights is rewritten before use
  bool copy_x = false;
  bool through_y = false;  // y is made in the workspace: it has one row or one column
  std::int64_t m = 0;      // rows; for oneDNN at least 2
  std::int64_t n = 0;      // outputs, likewise
  std::int64_t k = 0;
  std::int64_t slices = 0;      // of outputs
  std::int64_t widest = 0;      // slice
  std::int64_t groups = 0;      // of rows
  std::int64_t block_rows = 0;  // most rows of one product; a group may be several blocks
  std::int64_t threads = 0;

  std::int64_t slice_begin(std::int64_t slice) const {
    return std::min(n, slice * divide_up(n, kOutsUnit) / slices * kOutsUnit);
  }
  std::int64_t group_begin(std::int64_t group) const { return group * m / groups; }
};

// Weights in place: oneDNN copies its x and w for itself in each tile, so tiles are large. Their
// shape and number are those that finish first by measured costs.
void plan_large_tiles(Plan& plan) {
  constexpr double kCopyW = 17;      // what copying w costs: as much as so many rows
  constexpr double kCopyX = 25;      // what copying x costs: as much as so many outputs
  constexpr double kWaiting = 0.05;  // of a tile: what threads wait for the last one
  constexpr std::int64_t kMostTasksPerThread = 4;
  const std::int64_t most_slices =
      std::clamp<std::int64_t>(plan.n / kFewestOuts, 1, kMostTasksPerThread * plan.threads);
  double best = 0;
  for (std::int64_t slices = 1; slices <= most_slices; ++slices) {
    for (std::int64_t per_thread = 1; per_thread <= kMostTasksPerThread; ++per_thread) {
      const std::int64_t groups =
          std::min(plan.m / 2, divide_up(per_thread * plan.threads, slices));
      const auto tile_m = static_cast<double>(plan.m) / static_cast<double>(groups);
      const auto tile_n = static_cast<double>(plan.n) / static_cast<double>(slices);
      const auto turns = static_cast<double>(divide_up(groups * slices, plan.threads));
      const double cost = (turns + kWaiting) * (tile_m + kCopyW) * (tile_n + kCopyX);
      if (best != 0 && cost >= best) continue;
      best = cost;
      plan.slices = slices;
      plan.groups = groups;
    }
  }
  plan.block_rows = plan.m;
}

// A copied slice stays in the second-level cache while blocks of rows pass by.
void plan_slices(Plan& plan) {
  // Our own product copies no x for each slice, so more of them cost little, and threads wait less.
  const std::int64_t most_outs = plan.bf16 ? 240 : 144;
  constexpr std::int64_t kSliceBytes = 768 << 10;
  constexpr std::int64_t kTasksPerThread = 4;
  constexpr std::int64_t kFewestGroupRows = 512;  // fewer would not pay for the copy
  const std::int64_t fitting = kSliceBytes / (plan.k * (plan.bf16 ? 2 : 4));
  plan.slices = divide_up(plan.n, std::clamp(fitting / 48 * 48, kFewestOuts, most_outs));
  if (plan.n / kFewestOuts >= plan.threads) {
    plan.slices = divide_up(plan.slices, plan.threads) * plan.threads;
  }
  plan.groups = std::clamp<std::int64_t>(kTasksPerThread * plan.threads / plan.slices, 1,
                                         std::max<std::int64_t>(1, plan.m / kFewestGroupRows));
  plan.block_rows = 256;
}

Plan make_plan(const LinearArgs& args, const Context& ctx) {
  const std::int64_t rows = args.y.shape[0];
  const std::int64_t n = args.y.shape[1];
  const std::int64_t k = args.x.shape[1];
  Plan plan;
  plan.bf16 = args.compute == Compute::kBf16 && multiplies_bf16();
  plan.round = args.compute == Compute::kBf16 && !plan.bf16;
  // oneDNN multiplies pairs of bf16 and, for an odd k, an infinity by the zero that fills the last
  // pair. Both x and w get a zero there instead.
  plan.k = plan.bf16 ? divide_up(k, 2) * 2 : k;
  plan.copy_w = !plan.bf16 || args.w.dtype != DType::kBf16 || n == 1 || plan.k != k;
  plan.copy_x = args.compute == Compute::kBf16;
  plan.through_y = plan.bf16 && (rows == 1 || n == 1);
  plan.m = plan.bf16 ? std::max<std::int64_t>(rows, 2) : rows;
  plan.n = plan.bf16 ? std::max<std::int64_t>(n, 2) : n;
  plan.threads = ctx.threads();
  if (plan.copy_w) {
    plan_slices(plan);
  } else {
    plan_large_tiles(plan);
  }
  plan.widest = divide_up(divide_up(plan.n, kOutsUnit), plan.slices) * kOutsUnit;
  return plan;
}

// What one call works on: numbers as oneDNN multiplies them.
template <class X>
struct Job {
  const LinearArgs& args;
  const Plan& plan;
  const X* x = nullptr;  // [m, k]
  std::int64_t x_stride = 0;
  X* slices = nullptr;  // [threads, slice_elements]
  float* y = nullptr;   // [m, n]
  std::int64_t y_stride = 0;
};

// Of the copy of a slice that a worker keeps.
std::int64_t slice_elements(const Plan& plan) {
  if (!plan.copy_w) return 0;
  return plan.widest * (plan.bf16 ? padded_stride(plan.k) : plan.k);
}

// Some rows of x times a slice of the weights.
struct TilePlace {
  std::int64_t row = 0;
  std::int64_t rows = 0;
  std::int64_t out = 0;
  std::int64_t outs = 0;
};

void multiply_block(const Job<Bf16>& job, const TilePlace& at, const PackArgs& stored,
                    const Bf16* copy) {
  OneDnnGemmArgs gemm;
  gemm.x = job.x + at.row * job.x_stride;
  gemm.x_stride = job.x_stride;
  gemm.w = copy != nullptr ? copy : reinterpret_cast<const Bf16*>(stored.w);
  gemm.w_stride = copy != nullptr ? padded_stride(job.plan.k) : job.plan.k;
  gemm.y = job.y + at.row * job.y_stride + at.out;
  gemm.y_stride = job.y_stride;
  gemm.m = at.rows;
  gemm.n = at.outs;
  gemm.k = job.plan.k;
  onednn_gemm(gemm);
}

void multiply_block(const Job<float>& job, const TilePlace& at, const PackArgs&,
                    const float* copy) {
  GemmF32Args gemm;
  gemm.x = job.x + at.row * job.x_stride;
  gemm.x_stride = job.x_stride;
  gemm.w = copy;
  gemm.w_stride = job.plan.k * kGemmPanel;
  gemm.y = job.y + at.row * job.y_stride + at.out;
  gemm.y_stride = job.y_stride;
  gemm.m = at.rows;
  gemm.n = at.outs;
  gemm.k = job.plan.k;
  gemm_f32(gemm);
}

void pack(const Job<Bf16>& job, const PackArgs& slice, Bf16* out) {
  const std::int64_t stride = padded_stride(job.plan.k);
  pack_bf16(slice, out, stride);
  if (slice.outs == 1) std::fill_n(out + stride, stride, Bf16{});
}

void pack(const Job<float>& job, const PackArgs& slice, float* out) {
  pack_f32_panels(slice, job.plan.round, out);
}

template <class X>
void multiply_tile(const Job<X>& job, std::int64_t task, int worker) {
  const Plan& plan = job.plan;
  const std::int64_t slice = task / plan.groups;
  const std::int64_t group = task % plan.groups;
  const std::int64_t first_out = plan.slice_begin(slice);
  const TensorRef& w = job.args.w;
  const PackArgs stored{w.data + first_out * w.shape[1] * dtype_bytes(w.dtype), w.dtype,
                        std::min(w.shape[0], plan.slice_begin(slice + 1)) - first_out, w.shape[1],
                        w.shape[1]};
  X* copy = nullptr;
  if (plan.copy_w) {
    copy = job.slices + worker * slice_elements(plan);
    pack(job, stored, copy);
  }
  const std::int64_t begin = plan.group_begin(group);
  const std::int64_t rows = plan.group_begin(group + 1) - begin;
  const std::int64_t blocks = divide_up(rows, plan.block_rows);
  for (std::int64_t block = 0; block < blocks; ++block) {
    TilePlace at;
    at.row = begin + block * rows / blocks;
    at.rows = begin + (block + 1) * rows / blocks - at.row;
    at.out = first_out;
    at.outs = plan.slice_begin(slice + 1) - first_out;
    multiply_block(job, at, stored, copy);
  }
}

// x rounded; for oneDNN a single row made two.
template <class X>
void copy_x(Job<X>& job, ArenaScope& scope, Context& ctx) {
  const ConstMatrix& x = job.args.x;
  const std::int64_t k = x.shape[1];
  const std::int64_t stride = padded_stride(job.plan.k);
  X* out = scope.allocate<X>(job.plan.m * stride);
  ctx.pool().run(x.shape[0], [&](std::int64_t row, int) {
    const float* from = x.row(row);
    X* to = out + row * stride;
    if constexpr (std::is_same_v<X, Bf16>) {
      round_to_bf16(from, k, to);
    } else {
      round_through_bf16(from, k, to);
    }
    std::fill(to + k, to + stride, X{});
  });
  if (job.plan.m > x.shape[0]) std::fill_n(out + stride, stride, X{});
  job.x = out;
  job.x_stride = stride;
}

template <class X>
void multiply(const LinearArgs& args, const Plan& plan, Context& ctx) {
  ArenaScope scope(ctx.workspace());
  Job<X> job{args, plan};
  if constexpr (std::is_same_v<X, float>) {
    job.x = args.x.floats();
    job.x_stride = args.x.stride[0];
  }
  if (plan.copy_x) copy_x(job, scope, ctx);
  job.slices = scope.allocate<X>(plan.threads * slice_elements(plan));
  job.y = plan.through_y ? scope.allocate<float>(plan.m * plan.n) : args.y.floats();
  job.y_stride = plan.through_y ? plan.n : args.y.stride[0];
  ctx.pool().run(plan.slices * plan.groups,
                 [&](std::int64_t task, int worker) { multiply_tile(job, task, worker); });
  if (!plan.through_y) return;
  for (std::int64_t row = 0; row < args.y.shape[0]; ++row) {
    std::copy_n(job.y + row * job.y_stride, args.y.shape[1], args.y.row(row));
  }
}

}  // namespace

std::size_t linear_gemm_workspace_bytes(const LinearArgs& args, const Context& ctx) {
  const Plan plan = make_plan(args, ctx);
  const std::int64_t x_bytes = plan.bf16 ? 2 : 4;
  std::int64_t bytes = plan.threads * slice_elements(plan) * x_bytes;
  if (plan.copy_x) bytes += plan.m * padded_stride(plan.k) * x_bytes;
  if (plan.through_y) bytes += plan.m * plan.n * 4;
  return static_cast<std::size_t>(bytes) + 3 * Arena::kAlignBytes;
}

void linear_gemm(const LinearArgs& args, Context& ctx) {
  const Plan plan = make_plan(args, ctx);
  if (plan.bf16) {
    multiply<Bf16>(args, plan, ctx);
  } else {
    multiply<float>(args, plan, ctx);
  }
}

}  // namespace mamba3
