#include "ops/mamba3_step/mamba3_step.h"

#include "core/check.h"
#include "core/op_timer.h"
#include "core/thread_pool.h"
#include "ops/cuda_ops.h"
#include "ops/mamba3_step/mamba3_ring_ops.h"
#include "ops/mamba3_step/mamba3_step_cpu.h"

namespace mamba3 {

std::size_t step_scratch_bytes(const Mamba3Dims& dims) {
  constexpr std::int64_t kParts = 12;  // of StepScratch, each rounded up to the arena's alignment
  const std::int64_t floats = 4 * dims.angles + dims.rank * (6 * dims.state + 3 * dims.head_dim);
  return static_cast<std::size_t>(floats) * sizeof(float) + kParts * Arena::kAlignBytes;
}

StepScratch take_step_scratch(ArenaScope& scope, const Mamba3Dims& dims) {
  const std::int64_t rn = dims.rank * dims.state;
  const std::int64_t rp = dims.rank * dims.head_dim;
  StepScratch out;
  out.half_tanh = scope.allocate<double>(dims.angles);
  out.cosine = scope.allocate<float>(dims.angles);
  out.sine = scope.allocate<float>(dims.angles);
  out.normed_b = scope.allocate<float>(rn);
  out.normed_c = scope.allocate<float>(rn);
  out.q = scope.allocate<float>(rn);
  out.k_previous = scope.allocate<float>(rn);
  out.k_now = scope.allocate<float>(rn);
  out.q_now = scope.allocate<float>(rn);
  out.x_carry = scope.allocate<float>(rp);
  out.x_now = scope.allocate<float>(rp);
  out.read_out = scope.allocate<float>(rp);
  return out;
}

KernelPath mamba3_step_path(const Mamba3Dims& dims, int compute_capability) {
  KernelPath path = tuned_for(dims, compute_capability);
  if (path.tuned && dims.out_norm) path = {false, "out-norm; the tuned kernels are without"};
  if (path.tuned && (dims.fixed_steps || dims.angles == 0)) {
    path = {false, str(dims.fixed_steps ? "fixed steps of the phases" : "no rotation",
                       "; the tuned kernels are for data-dependent ones")};
  }
  if (path.tuned && dims.angles % 4 != 0) {
    path = {false, str("s = ", dims.angles, "; the tuned kernels are for multiples of 4")};
  }
  return path;
}

std::size_t mamba3_step_workspace_bytes(const Mamba3StepArgs& args, const Context& ctx) {
  const std::size_t workers = static_cast<std::size_t>(ctx.threads());
  return workers * (step_scratch_bytes(args.dims) + sizeof(StepScratch)) +
         check_slots_workspace_bytes(args.slots) + Arena::kAlignBytes;
}

void mamba3_step(const Mamba3StepArgs& args, Context& ctx) {
  const OpTimer timer(ctx, "mamba3_step");
  const auto rows = static_cast<std::int64_t>(args.slots.size());
  check_dims(args.dims);
  check_params(args.dims, args.params);
  check_columns(args.dims, args.columns, rows);
  check_states(args.dims, args.states, args.slots, ctx);
  check_scan_output(args.dims, args.y, rows);
  if (rows == 0) return;
  const Mamba3Ring& ring = args.states.ring;
  if (ring.tokens > 0) {
    check_ring(args.dims, ring);
    check_input(ctx.gpu() && mamba3_ring_fits(args.dims, *ctx.gpu()),
                "states of this shape can have no ring here; expected none");
    return mamba3_ring_step_cuda(args, ctx);
  }
  if (ctx.gpu()) return mamba3_step_cuda(args, ctx);
  mamba3_step_cpu(args, ctx);
}

}  // namespace mamba3
