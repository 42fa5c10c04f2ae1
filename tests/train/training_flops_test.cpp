#include "train/training_flops.h"

#include <gtest/gtest.h>

#include "model/tiny_models.h"

namespace mamba3 {
namespace {

// All matrices are those of products, but an embedding that is not the head.
TEST(TrainingFlops, SixForEachParameterOfAProductAndThreeRecurrences) {
  for (const TinyModel& model : tiny_models()) {
    const ModelConfig& config = model.config;
    double products = 0;
    for (const TensorSpec& spec : tensor_specs(config)) {
      const bool only_read = spec.name == "backbone.embedding.weight" && !config.tied_embeddings;
      if (spec.large && !only_read) products += static_cast<double>(spec.shape[0] * spec.shape[1]);
    }
    const double states = static_cast<double>(config.layers * config.inner() * config.mixer.state);
    const double recurrence = 4 * states * static_cast<double>(config.mixer.rank);
    EXPECT_DOUBLE_EQ(training_flops_per_token(config), 6 * products + 3 * recurrence) << model.name;
  }
}

}  // namespace
}  // namespace mamba3
