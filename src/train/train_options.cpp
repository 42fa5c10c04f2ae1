#include "train/train_options.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/quote.h"

namespace mamba3 {
namespace {

constexpr const char* kBf16Name = "bf16";
constexpr const char* kF32Name = "fp32";

Compute compute_named(const std::string& name) {
  check_input(name == kBf16Name || name == kF32Name, "the arithmetic is ", quote(name),
              "; expected fp32 or bf16");
  return name == kBf16Name ? Compute::kBf16 : Compute::kF32;
}

// In the order of Recompute.
constexpr const char* kRecomputeNames[] = {"none", "scan", "block"};

}  // namespace

Recompute recompute_named(const std::string& name) {
  const auto* found = std::ranges::find(kRecomputeNames, name);
  check_input(found != std::end(kRecomputeNames), "what is computed again is ", quote(name),
              "; expected none, scan or block");
  return static_cast<Recompute>(found - std::begin(kRecomputeNames));
}

LossOptions loss_options(const TrainOptions& options) {
  LossOptions out;
  out.compute = options.compute;
  out.z_weight = options.z_loss;
  out.recompute = options.recompute;
  return out;
}

void check_train_options(const TrainOptions& options) {
  constexpr std::int64_t kMost = 1'000'000'000;  // so that products of two are numbers, too
  for (const auto& [what, count] : {std::pair("windows of a batch", options.batch),
                                    std::pair("tokens of a window", options.length),
                                    std::pair("tokens of a micro-batch", options.accumulate)}) {
    check_input(count >= 1 && count <= kMost, what, ": ", count, "; expected 1 to ", kMost);
  }
  check_input(options.z_loss >= 0, "the z-loss weighs ", options.z_loss, "; expected at least 0");
  check_schedule(options.schedule);
  check_optimizer(options.optimizer);
}

nlohmann::ordered_json to_json(const TrainOptions& options) {
  const Schedule& schedule = options.schedule;
  const OptimizerOptions& optimizer = options.optimizer;
  return {{"steps", schedule.steps},
          {"batch", options.batch},
          {"length", options.length},
          {"accumulate", options.accumulate},
          {"rate", schedule.peak},
          {"warmup", schedule.warmup_steps},
          {"schedule", schedule_name(schedule.kind)},
          {"decay_from", schedule.decay_from},
          {"final_rate", schedule.last},
          {"decay", optimizer.decay},
          {"clip", optimizer.clip},
          {"beta1", optimizer.beta1},
          {"beta2", optimizer.beta2},
          {"eps", optimizer.eps},
          {"z_loss", options.z_loss},
          {"dtype", options.compute == Compute::kBf16 ? kBf16Name : kF32Name},
          {"recompute", kRecomputeNames[static_cast<int>(options.recompute)]},
          {"carry_states", options.carry_states},
          {"seed", options.seed}};
}

TrainOptions train_options_from(const nlohmann::json& json) {
  TrainOptions options;
  Schedule& schedule = options.schedule;
  OptimizerOptions& optimizer = options.optimizer;
  json.at("steps").get_to(schedule.steps);
  json.at("batch").get_to(options.batch);
  json.at("length").get_to(options.length);
  json.at("accumulate").get_to(options.accumulate);
  json.at("rate").get_to(schedule.peak);
  json.at("warmup").get_to(schedule.warmup_steps);
  schedule.kind = schedule_kind(json.at("schedule").get<std::string>());
  json.at("decay_from").get_to(schedule.decay_from);
  json.at("final_rate").get_to(schedule.last);
  json.at("decay").get_to(optimizer.decay);
  json.at("clip").get_to(optimizer.clip);
  json.at("beta1").get_to(optimizer.beta1);
  json.at("beta2").get_to(optimizer.beta2);
  json.at("eps").get_to(optimizer.eps);
  json.at("z_loss").get_to(options.z_loss);
  options.compute = compute_named(json.at("dtype").get<std::string>());
  options.recompute = recompute_named(json.at("recompute").get<std::string>());
  options.carry_states = json.value("carry_states", false);
  json.at("seed").get_to(options.seed);
  check_train_options(options);
  return options;
}

std::vector<std::string> changes(const TrainOptions& before, const TrainOptions& now) {
  const nlohmann::ordered_json old = to_json(before), fresh = to_json(now);
  std::vector<std::string> out;
  for (const auto& [key, value] : fresh.items()) {
    if (value != old.at(key)) out.push_back(str(key, " ", value, ", was ", old.at(key)));
  }
  return out;
}

}  // namespace mamba3
