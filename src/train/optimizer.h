// AdamW over all of a model's parameters.
#pragma once

#include <cstdint>
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

// Whether weight decay is for a tensor of this name: matrices, the embedding, mimo_x, mimo_z and
// mimo_o; not dt_bias, D, biases and norms.
bool decays(const std::string& name);

// Refuses numbers that mean nothing, naming them.
void check_optimizer(const OptimizerOptions& options);

class Optimizer {
 public:
  Optimizer(const ModelConfig& config, const OptimizerOptions& options);

  // One update of `weights` by grad_scale * gradients, clipped. Returns the norm of that before it
  // is clipped. When the norm is not finite nothing changes, and the step does not count.
  double step(const ParameterValues& gradients, double grad_scale, double rate,
              ParameterValues& weights, Context& ctx);

  // What a checkpoint holds beside the weights.
  std::int64_t steps() const { return steps_; }
  const ParameterValues& first() const { return first_; }
  const ParameterValues& second() const { return second_; }
  // Goes on from there: `steps` updates were made, and these are the moments that they left.
  void resume(std::int64_t steps, const ParameterValues& first, const ParameterValues& second);

 private:
  ModelConfig config_;
  OptimizerOptions options_;
  ParameterValues first_, second_;
  std::int64_t steps_ = 0;
};

}  // namespace mamba3
