// Decoding and reading prompts as benchmarks do: whole cycles of steps, whole prompts.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "mamba3/model.h"

namespace mamba3::cli {

// One token after the other for each of `batch` sequences; each is the best one of the step before,
// chosen where it is computed.
class DecodeRun {
 public:
  DecodeRun(const Model& model, std::int64_t batch, const StatePoolOptions& options, Context& ctx);
  DecodeRun(const DecodeRun&) = delete;
  DecodeRun& operator=(const DecodeRun&) = delete;

  std::int64_t ring_tokens() const { return states_.ring_tokens(); }
  // Where prompts may be read that decoding goes on from; sequence i is in slot i.
  StatePool& states() { return states_; }
  // The next step takes ids[i] as sequence i's token at `position`.
  void go_on_from(std::span<const std::int32_t> ids, std::int64_t position);

  // Seconds of `count` steps. `between` is called after each with how many are done.
  double seconds(std::int64_t count, const std::function<void(std::int64_t)>& between = {});
  // One step whose ops are called one by one: a recorded graph would hide them from an OpTimer.
  void step_op_by_op();

 private:
  void step();

  const Model& model_;
  Context& ctx_;
  StatePool states_;
  DecodeBatch decode_;
  std::vector<DecodeRow> rows_;
};

// Seconds of one step: the median of the cycles of `repeat` measurements, each of `cycle_steps`
// steps, after one that warms up. Where steps differ, as with states that are written back every k
// tokens, a cycle is a multiple of k, so that none of the work is left out. `between` is called
// after each cycle.
double step_seconds(DecodeRun& run, std::int64_t cycle_steps, std::int64_t repeat,
                    const std::function<void()>& between = {});

// Random prompts of so many tokens each.
class PrefillRun {
 public:
  PrefillRun(const Model& model, const std::vector<std::int64_t>& lengths, Context& ctx);
  PrefillRun(const Model& model, std::int64_t batch, std::int64_t tokens, Context& ctx)
      : PrefillRun(model, std::vector<std::int64_t>(static_cast<std::size_t>(batch), tokens), ctx) {
  }
  // Into the first slots of `states`, which must outlive it.
  PrefillRun(const Model& model, const std::vector<std::int64_t>& lengths, StatePool& states,
             Context& ctx);

  std::int64_t tokens() const { return cu_seqlens_.back(); }  // of all prompts
  // Seconds from the ids to the logits of each prompt's last token.
  double seconds();
  // The most likely token after each prompt, of the last run.
  std::vector<std::int32_t> best_ids() const;

 private:
  void draw_prompts(const std::vector<std::int64_t>& lengths);

  const Model& model_;
  Context& ctx_;
  std::optional<StatePool> own_states_;
  StatePool& states_;
  std::vector<std::int32_t> ids_, slots_;
  std::vector<std::int64_t> cu_seqlens_ = {0};
  std::vector<float> logits_;  // [b, padded vocabulary]
};

}  // namespace mamba3::cli
