#include "train/training_flops.h"

namespace mamba3 {

double training_flops_per_token(const ModelConfig& config) {
  const std::int64_t d = config.width, f = config.mlp_hidden;
  const std::int64_t layer = config.in_proj_rows() * d + d * config.inner() + 3 * f * d;
  const std::int64_t products = config.layers * layer + config.padded_vocab() * d;
  const std::int64_t recurrence = 4 * config.layers * config.heads() * config.mixer.rank *
                                  config.mixer.state * config.mixer.head_dim;
  return 6 * static_cast<double>(products) + 3 * static_cast<double>(recurrence);
}

}  // namespace mamba3
