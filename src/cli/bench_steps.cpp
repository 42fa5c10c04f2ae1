#include "cli/bench_steps.h"

#include <algorithm>
#include <numeric>

#include "cli/bench_memory.h"
#include "cli/bench_timing.h"
#include "cli/terminal.h"

namespace mamba3::cli {
namespace {

std::vector<std::int32_t> slots_of(std::int64_t batch) {
  std::vector<std::int32_t> slots(static_cast<std::size_t>(batch));
  std::iota(slots.begin(), slots.end(), 0);
  return slots;
}

std::size_t logits_count(const Model& model, std::int64_t batch) {
  return static_cast<std::size_t>(batch * model.config().padded_vocab());
}

}  // namespace

DecodeRun::DecodeRun(const Model& model, std::int64_t batch, const StatePoolOptions& options,
                     Context& ctx)
    : model_(model),
      ctx_(ctx),
      states_(model.config(), batch, ctx, options),
      decode_(model, states_, batch, ctx),
      rows_(static_cast<std::size_t>(batch)) {
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    rows_[i].slot = static_cast<std::int32_t>(i);
    rows_[i].sampling.temperature = 0;
  }
}

void DecodeRun::go_on_from(std::span<const std::int32_t> ids, std::int64_t position) {
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    rows_[i].id = ids[i];
    rows_[i].position = position;
  }
}

double DecodeRun::seconds(std::int64_t count, const std::function<void(std::int64_t)>& between) {
  return time_once(ctx_, [&] {
    for (std::int64_t i = 0; i < count; ++i) {
      step();
      if (between) between(i + 1);
    }
  });
}

void DecodeRun::step() {
  const std::span<const SampledToken> sampled = decode_.step(rows_);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    rows_[i].id = sampled[i].id;
    ++rows_[i].position;
  }
}

void DecodeRun::step_op_by_op() {
  const std::int64_t batch = std::ssize(rows_);
  std::vector<std::int32_t> ids;
  for (const DecodeRow& row : rows_) ids.push_back(row.id);
  std::vector<float> logits(logits_count(model_, batch));
  model_.step(ids, slots_of(batch), states_,
              {logits.data(), {batch, model_.config().padded_vocab()}}, ctx_);
}

double step_seconds(DecodeRun& run, std::int64_t cycle_steps, std::int64_t repeat,
                    const std::function<void()>& between) {
  // Single steps are short: a few for each repetition.
  const std::int64_t cycles = repeat * std::max<std::int64_t>(1, 8 / cycle_steps);
  run.seconds(cycle_steps);
  std::vector<double> seconds;
  for (std::int64_t i = 0; i < cycles; ++i) {
    seconds.push_back(run.seconds(cycle_steps));
    if (between) between();
  }
  return median(seconds) / static_cast<double>(cycle_steps);
}

PrefillRun::PrefillRun(const Model& model, const std::vector<std::int64_t>& lengths, Context& ctx)
    : model_(model),
      ctx_(ctx),
      own_states_(std::in_place, model.config(), std::ssize(lengths), ctx),
      states_(*own_states_),
      slots_(slots_of(std::ssize(lengths))),
      logits_(logits_count(model, std::ssize(lengths))) {
  draw_prompts(lengths);
}

PrefillRun::PrefillRun(const Model& model, const std::vector<std::int64_t>& lengths,
                       StatePool& states, Context& ctx)
    : model_(model),
      ctx_(ctx),
      states_(states),
      slots_(slots_of(std::ssize(lengths))),
      logits_(logits_count(model, std::ssize(lengths))) {
  draw_prompts(lengths);
}

void PrefillRun::draw_prompts(const std::vector<std::int64_t>& lengths) {
  for (const std::int64_t length : lengths) cu_seqlens_.push_back(tokens() + length);
  ids_ = random_ids(tokens(), model_.config().vocab, 0, ctx_);
}

double PrefillRun::seconds() {
  for (const std::int32_t slot : slots_) states_.reset(slot);
  PrefillArgs args;
  args.ids = ids_;
  args.cu_seqlens = cu_seqlens_;
  args.slots = slots_;
  args.progress = [](std::int64_t) { check_interrupt(); };
  args.last_logits = {logits_.data(), {std::ssize(slots_), model_.config().padded_vocab()}};
  return time_once(ctx_, [&] { model_.prefill(args, states_, ctx_); });
}

std::vector<std::int32_t> PrefillRun::best_ids() const {
  const std::int64_t padded = model_.config().padded_vocab();
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < std::ssize(slots_); ++i) {
    const auto row = logits_.begin() + i * padded;
    const auto best = std::max_element(row, row + model_.config().vocab);
    ids.push_back(static_cast<std::int32_t>(best - row));
  }
  return ids;
}

}  // namespace mamba3::cli
