#include "ops/mamba3_step/mamba3_ring_ops.h"

#include "core/check.h"
#include "ops/cuda_ops.h"

namespace mamba3 {
namespace {

void check_has_ring(const Mamba3Ring& ring) {
  check_input(ring.tokens > 0 && ring.cursors != nullptr,
              "the states have no ring; expected one of 1 to ", kMostRingTokens, " tokens");
}

}  // namespace

bool mamba3_ring_fits(const Mamba3Dims& dims, const Gpu& gpu) {
  return mamba3_step_path(dims, gpu.info().compute_capability).tuned;
}

void mamba3_ring_advance(const RingCursorArgs& args, Gpu& gpu) {
  check_has_ring(args.ring);
  mamba3_ring_advance_cuda(args, gpu);
}

void mamba3_ring_roll_back(const RingCursorArgs& args, std::span<const std::int32_t> tokens,
                           Gpu& gpu) {
  check_has_ring(args.ring);
  check_input(tokens.size() == args.slots.size(), tokens.size(), " numbers of tokens for ",
              args.slots.size(), " slots; expected one each");
  mamba3_ring_roll_back_cuda(args, tokens, gpu);
}

void mamba3_ring_settle(const RingSettleArgs& args, Gpu& gpu) {
  check_has_ring(args.states.ring);
  check_dims(args.dims);
  check_params(args.dims, args.params);
  check_ring(args.dims, args.states.ring);
  check_input(mamba3_ring_fits(args.dims, gpu), "states of this shape can have no ring here");
  mamba3_ring_settle_cuda(args, gpu);
}

void mamba3_ring_clear(const RingCursorArgs& args, Gpu& gpu) {
  check_has_ring(args.ring);
  mamba3_ring_clear_cuda(args, gpu);
}

}  // namespace mamba3
