#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "mamba3/error.h"
#include "model/init.h"
#include "model/tiny_models.h"
#include "train/loss_and_gradients.h"

namespace mamba3 {
namespace {

ContextOptions with_threads(int threads) {
  ContextOptions options;
  options.threads = threads;
  return options;
}

TEST(Optimizer, DecaysMatricesAlone) {
  ModelConfig config = tiny_models()[1].config;  // MIMO with an out-norm and a head
  config.mlp_hidden = 128;
  std::vector<std::string> found;
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (decays(spec.name)) found.push_back(spec.name);
  }
  std::vector<std::string> expected = {"backbone.embedding.weight", "lm_head.weight"};
  for (const char* layer : {"backbone.layers.0.", "backbone.layers.1."}) {
    for (const char* name : {"mixer.in_proj.weight", "mixer.out_proj.weight", "mixer.mimo_x",
                             "mixer.mimo_z", "mixer.mimo_o", "mlp.fc1.weight", "mlp.fc2.weight"}) {
      expected.push_back(std::string(layer) + name);
    }
  }
  std::ranges::sort(found);
  std::ranges::sort(expected);
  EXPECT_EQ(found, expected);
}

// A model that learns a few sequences by heart.
struct Learner {
  explicit Learner(const TinyModel& model, int threads)
      : ctx(with_threads(threads)),
        config(model.config),
        weights(config),
        gradients(config),
        optimizer(config, {}),
        ids(random_ids(64, config.vocab, 3)) {
    const InitialTensors initial = init_tensors(config, DType::kF32, 1, ctx);
    for (const auto& [name, tensor] : initial.tensors) {
      std::ranges::copy(widen(tensor), weights.at(name));
    }
    targets.assign(ids.begin() + 1, ids.end());
    targets.push_back(kIgnoredTarget);
    targets[31] = kIgnoredTarget;
  }
  // The mean loss before the update.
  double step() {
    const ModelWeights bound = bind_weights(config, weights.tensors(), nullptr, ctx);
    gradients.clear(ctx);
    const std::vector<std::int64_t> bounds = {0, 32, 64};
    const auto sums = loss_and_gradients(config, bound, {ids, targets, bounds}, {}, gradients, ctx);
    norm = optimizer.step(gradients, 1 / static_cast<double>(sums.rows), 5e-3, weights, ctx);
    return sums.loss / static_cast<double>(sums.rows);
  }
  Context ctx;
  ModelConfig config;
  ParameterValues weights, gradients;
  Optimizer optimizer;
  std::vector<std::int32_t> ids, targets;
  double norm = 0;
};

bool same_bits(const ParameterValues& a, const ParameterValues& b) {
  const auto of_a = a.all(), of_b = b.all();
  for (std::size_t i = 0; i < of_a.size(); ++i) {
    if (std::memcmp(of_a[i].data(), of_b[i].data(), of_a[i].size_bytes()) != 0) return false;
  }
  return true;
}

TEST(Optimizer, LearnsByHeart) {
  for (const TinyModel& model : tiny_models()) {
    Learner run(model, 2);
    const double first = run.step();
    EXPECT_NEAR(first, std::log(static_cast<double>(model.config.vocab)), 0.5) << model.name;
    double last = first;
    for (int i = 0; i < 80; ++i) last = run.step();
    EXPECT_LT(last, 0.05 * first) << model.name;
    EXPECT_TRUE(std::isfinite(run.norm));
  }
}

TEST(Optimizer, ResumingChangesNoBit) {
  const TinyModel model = tiny_models()[0];
  Learner whole(model, 2), before(model, 1);
  for (int i = 0; i < 6; ++i) whole.step();
  for (int i = 0; i < 3; ++i) before.step();
  Learner after(model, 2);
  for (const auto& spec : tensor_specs(model.config)) {
    std::ranges::copy(before.weights.values(spec.name), after.weights.at(spec.name));
  }
  after.optimizer.resume(before.optimizer.steps(), before.optimizer.first(),
                         before.optimizer.second());
  for (int i = 0; i < 3; ++i) after.step();
  EXPECT_EQ(after.optimizer.steps(), 6);
  EXPECT_TRUE(same_bits(after.weights, whole.weights));
  EXPECT_TRUE(same_bits(after.optimizer.first(), whole.optimizer.first()));
  EXPECT_TRUE(same_bits(after.optimizer.second(), whole.optimizer.second()));
}

TEST(Optimizer, ClipsToTheGlobalNorm) {
  const ModelConfig config = tiny_models()[0].config;
  Context ctx(with_threads(1));
  ParameterValues gradients(config), weights(config);
  std::int64_t count = 0;
  for (const auto& spec : tensor_specs(config)) {
    std::ranges::fill(gradients.values(spec.name), 3.0f);
    count += std::ssize(gradients.values(spec.name));
  }
  Optimizer optimizer(config, {});
  const double norm = optimizer.step(gradients, 0.5, 1e-3, weights, ctx);
  EXPECT_NEAR(norm, 1.5 * std::sqrt(static_cast<double>(count)), 1e-6 * norm);
  // The first moment is a tenth of the clipped gradient, whose norm is 1.
  double squares = 0;
  for (const auto values : optimizer.first().all()) {
    for (const float value : values) squares += static_cast<double>(value) * value;
  }
  EXPECT_NEAR(std::sqrt(squares), 0.1, 1e-6);
}

TEST(Optimizer, AGradientThatIsNotFiniteChangesNothing) {
  const TinyModel model = tiny_models()[0];
  Learner run(model, 1), untouched(model, 1);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    run.gradients.values("backbone.norm_f.weight")[3] = bad;
    EXPECT_FALSE(std::isfinite(run.optimizer.step(run.gradients, 1, 1e-3, run.weights, run.ctx)));
  }
  EXPECT_EQ(run.optimizer.steps(), 0);
  EXPECT_TRUE(same_bits(run.weights, untouched.weights));
}

TEST(Optimizer, RefusesNumbersThatMeanNothing) {
  const auto refused = [](auto&& change) {
    OptimizerOptions options;
    change(options);
    EXPECT_THROW(check_optimizer(options), Error);
  };
  check_optimizer({});
  refused([](OptimizerOptions& o) { o.beta1 = 1; });
  refused([](OptimizerOptions& o) { o.beta2 = -0.1; });
  refused([](OptimizerOptions& o) { o.eps = 0; });
  refused([](OptimizerOptions& o) { o.decay = std::nan(""); });
  refused([](OptimizerOptions& o) { o.clip = -1; });
}

}  // namespace
}  // namespace mamba3
