// Sequences that step on a GPU with a ring of deferred tokens, for the tests: every slot's memory
// holds NaNs where nothing was written, and nothing may show that.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "gpu_case.h"
#include "ops/mamba3_step/mamba3_ring_ops.h"
#include "ops/mamba3_step/mamba3_step.h"
#include "scan_case.h"

namespace mamba3::testing {

// The slots of one layer with their rings, and the layer's parameters.
class RingSlots {
 public:
  static constexpr std::int64_t kPadding = 4;  // whole pieces of 16 bytes

  RingSlots(const Mamba3RefInputs<float>& layer, std::int64_t slots, std::int64_t tokens,
            bool stagger, Context& ctx)
      : ctx_(ctx),
        dims_(layer.dims),
        params_(ctx, layer),
        host_(dims_, slots, kPadding),
        states_(ctx, host_),
        slot_bytes_(ring_bytes(dims_, tokens) + 64),
        ring_(ctx, all(std::vector<std::byte>(static_cast<std::size_t>(slots * slot_bytes_),
                                              std::byte{0xff}))),
        cursors_(ctx, all(std::vector<std::uint32_t>(static_cast<std::size_t>(slots), 0))),
        views_(states_.states()) {
    views_.ring = ring_views(dims_, tokens, ring_.data(), slot_bytes_);
    views_.ring.stagger = stagger;
    views_.ring.cursors = cursors_.data();
  }

  // A sequence begins in a slot. What an earlier one left in the ring stays there, as garbage.
  void start(std::int32_t slot, const Mamba3RefState<float>& state) {
    host_.put(slot, state);
    states_.send(slot);
    clear({slot});
  }
  void poison_ring(std::int32_t slot) {
    const std::vector<std::byte> garbage(static_cast<std::size_t>(slot_bytes_), std::byte{0xff});
    ctx_.gpu()->copy_in(ring_.data() + slot * slot_bytes_, garbage.data(), garbage.size());
  }

  // Token tokens[i] of inputs[i] in slots[i]; y [row, h * p]. Y: float or Bf16.
  template <class Y = float>
  std::vector<Y> step(const std::vector<const Mamba3RefInputs<float>*>& inputs,
                      const std::vector<std::int64_t>& tokens,
                      const std::vector<std::int32_t>& slots) {
    const auto count = static_cast<std::int64_t>(slots.size());
    const std::int64_t inner = dims_.heads * dims_.head_dim;
    Rows rows(dims_, count, 3);
    for (std::int64_t i = 0; i < count; ++i) rows.put(i, *inputs[i], tokens[i]);
    const GpuArray<float> columns(ctx_, all(rows.data));
    const GpuArray<std::int32_t> slot_ids(ctx_, all(slots));
    const GpuArray<Y> y(ctx_, all(std::vector<Y>(count * inner, nan_of<Y>())));
    Mamba3StepArgs args;
    args.dims = dims_;
    args.params = params_.params;
    args.columns = split_columns(columns.data(), rows.stride, dims_);
    args.slots = slot_ids.span();
    args.states = views_;
    args.y = TensorView<Y, 2>(y.data(), {count, inner});
    mamba3_step(args, ctx_);
    if (views_.ring.tokens > 0) mamba3_ring_advance({views_.ring, slot_ids.span()}, *ctx_.gpu());
    std::vector<Y> out;
    y.copy_to(out);
    return out;
  }

  // Every token of `inputs` in one slot, without waiting in between: for long runs. y [t, h * p].
  std::vector<float> run(const Mamba3RefInputs<float>& inputs, std::int32_t slot) {
    const std::int64_t inner = dims_.heads * dims_.head_dim;
    Rows rows(dims_, inputs.tokens, 4);
    for (std::int64_t t = 0; t < inputs.tokens; ++t) rows.put(t, inputs, t);
    const GpuArray<float> columns(ctx_, all(rows.data));
    const GpuArray<std::int32_t> slot_ids(ctx_, all(std::vector{slot}));
    const GpuArray<float> y(ctx_, all(std::vector<float>(inputs.tokens * inner, kNan)));
    Mamba3StepArgs args;
    args.dims = dims_;
    args.params = params_.params;
    args.slots = slot_ids.span();
    args.states = views_;
    for (std::int64_t t = 0; t < inputs.tokens; ++t) {
      args.columns = split_columns(columns.data() + t * rows.stride, rows.stride, dims_);
      args.y = TensorView<float, 2>(y.data() + t * inner, {1, inner});
      mamba3_step(args, ctx_);
      if (views_.ring.tokens > 0) mamba3_ring_advance({views_.ring, slot_ids.span()}, *ctx_.gpu());
    }
    std::vector<float> out;
    y.copy_to(out);
    return out;
  }

  void settle(const std::vector<std::int32_t>& slots) {
    const GpuArray<std::int32_t> slot_ids(ctx_, all(slots));
    mamba3_ring_settle({dims_, params_.params, views_, slot_ids.span()}, *ctx_.gpu());
    clear(slots);
  }
  void roll_back(std::int32_t slot, std::int32_t tokens) {
    const GpuArray<std::int32_t> slot_ids(ctx_, all(std::vector{slot}));
    const GpuArray<std::int32_t> counts(ctx_, all(std::vector{tokens}));
    mamba3_ring_roll_back({views_.ring, slot_ids.span()}, counts.span(), *ctx_.gpu());
    ctx_.gpu()->synchronize();
  }
  void fork(std::int32_t from, std::int32_t to) {
    Gpu& gpu = *ctx_.gpu();
    states_.copy_slot(from, to);
    gpu.copy(ring_.data() + to * slot_bytes_, ring_.data() + from * slot_bytes_,
             static_cast<std::size_t>(slot_bytes_));
    gpu.copy(cursors_.data() + to, cursors_.data() + from, sizeof(std::uint32_t));
  }
  RingCursor cursor(std::int32_t slot) const {
    std::vector<std::uint32_t> cursors;
    cursors_.copy_to(cursors);
    return unpack_cursor(cursors[slot]);
  }

  // The canonical tuples, once settled.
  const Slots& fetch() {
    states_.fetch();
    return host_;
  }
  std::vector<std::uint32_t> turns(std::int32_t slot) const {
    const std::int64_t count = dims_.heads * dims_.angles;
    const auto begin = host_.turns.begin() + slot * (count + kPadding);
    return {begin, begin + count};
  }

 private:
  template <class Y>
  static Y nan_of() {
    if constexpr (std::is_same_v<Y, float>)
      return kNan;
    else
      return to_bf16(kNan);
  }
  void clear(const std::vector<std::int32_t>& slots) {
    if (views_.ring.tokens == 0) return;
    const GpuArray<std::int32_t> slot_ids(ctx_, all(slots));
    mamba3_ring_clear({views_.ring, slot_ids.span()}, *ctx_.gpu());
    ctx_.gpu()->synchronize();
  }

  Context& ctx_;
  Mamba3Dims dims_;
  GpuParams params_;
  Slots host_;
  GpuSlots states_;
  std::int64_t slot_bytes_;
  GpuArray<std::byte> ring_;
  GpuArray<std::uint32_t> cursors_;
  Mamba3States views_;
};

// Everything that a tuned shape can differ in.
inline std::vector<Mamba3Dims> ring_dims() {
  std::vector<Mamba3Dims> out;
  const auto add = [&out](std::int64_t h, std::int64_t n, std::int64_t g, std::int64_t r,
                          std::int64_t s, bool mimo) {
    Mamba3Dims d;
    d.heads = h;
    d.head_dim = 64;
    d.state = n;
    d.groups = g;
    d.rank = r;
    d.angles = s;
    d.mimo = mimo;
    out.push_back(d);
  };
  add(3, 128, 1, 1, 32, false);
  add(5, 128, 1, 4, 32, true);
  add(4, 128, 2, 2, 64, true);
  add(2, 128, 1, 1, 64, false);
  add(2, 128, 2, 1, 32, true);
  add(6, 64, 3, 1, 16, false);
  add(2, 64, 1, 2, 32, true);
  add(3, 64, 1, 4, 16, true);
  add(1, 64, 1, 1, 16, false);
  add(2, 128, 1, 4, 20, true);  // angles end within what a warp rotates
  add(2, 128, 1, 2, 44, true);
  add(70, 64, 1, 1, 12, false);  // more heads than a segment has
  out.back().a_activation = AActivation::kSoftplus;
  return out;
}

}  // namespace mamba3::testing
