// AdamW over all of a model's parameters.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "train/parameter_values.h"

namespace mamba3 {

struct OptimizerOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double decay = 0.1;  // of the tensors that decays() names
  double clip = 1;     // the largest global norm of the gradients; 0: any
};

// Refuses numbers that mean nothing, naming them.
void check_optimizer(const OptimizerOptions& options);

class Optimizer {
 public:
  // Its moments lie where the weights and gradients do: on a GPU unless it is null.
  Optimizer(const ModelConfig& config, const OptimizerOptions& options,
            const std::shared_ptr<Gpu>& gpu = nullptr);

  // One update of `weights` by the gradients, whose norm is `norm`, clipped. A norm that is not
  // finite is refused, and nothing changes. `rounded`: assigned, the group kMatrices in bf16; null:
  // not wanted.
  void step(const ParameterValues& gradients, double norm, double rate, ParameterValues& weights,
            Bf16* rounded, Context& ctx);

  // What a checkpoint holds beside the weights.
  std::int64_t steps() const { return steps_; }
  const ParameterValues& first() const { return first_; }
  const ParameterValues& second() const { return second_; }
  // Goes on from there: `steps` updates were made, and the moments "first.NAME" and "second.NAME",
  // in the host's memory, are what they left.
  void resume(std::int64_t steps, const std::map<std::string, TensorRef>& moments);

 private:
  OptimizerOptions options_;
  ParameterValues first_, second_;
  std::int64_t steps_ = 0;
};

}  // namespace mamba3
