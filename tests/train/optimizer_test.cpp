#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>

#include "mamba3/error.h"
#include "model/init.h"
#include "model/tiny_models.h"
#include "train/learner.h"

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
struct Pupil {
  Pupil(const TinyModel& model, int threads)
      : ctx(with_threads(threads)),
        learner(model.config, {}, {}, ctx),
        ids(random_ids(64, model.config.vocab, 3)) {
    learner.assign(init_tensors(model.config, DType::kF32, 1, ctx).tensors);
    targets.assign(ids.begin() + 1, ids.end());
    targets.push_back(kIgnoredTarget);
    targets[31] = kIgnoredTarget;
  }
  // The mean loss before the update.
  double step() {
    const std::vector<std::int64_t> bounds = {0, 32, 64};
    const double rows = 62;
    learner.clear();
    learner.add({ids, targets, bounds}, 1 / rows);
    const Learner::Figures found = learner.figures();
    EXPECT_EQ(found.sums.rows, 62);
    norm = found.norm;
    learner.update(norm, 5e-3);
    return found.sums.loss / rows;
  }
  Context ctx;
  Learner learner;
  std::vector<std::int32_t> ids, targets;
  double norm = 0;
};

bool same_bits(const ParameterValues& a, const ParameterValues& b) {
  return std::memcmp(a.all().data(), b.all().data(), a.all().size_bytes()) == 0;
}

TEST(Optimizer, LearnsByHeart) {
  for (const TinyModel& model : tiny_models()) {
    Pupil run(model, 2);
    const double first = run.step();
    EXPECT_NEAR(first, std::log(static_cast<double>(model.config.vocab)), 0.5) << model.name;
    double last = first;
    for (int i = 0; i < 80; ++i) last = run.step();
    EXPECT_LT(last, 0.05 * first) << model.name;
    EXPECT_TRUE(std::isfinite(run.norm));
  }
}

// What a checkpoint of it holds.
std::map<std::string, TensorRef> moments_of(const Optimizer& optimizer) {
  std::map<std::string, TensorRef> out;
  for (const auto& [name, tensor] : optimizer.first().tensors()) out["first." + name] = tensor;
  for (const auto& [name, tensor] : optimizer.second().tensors()) out["second." + name] = tensor;
  return out;
}

TEST(Optimizer, ResumingChangesNoBit) {
  const TinyModel model = tiny_models()[0];
  Pupil whole(model, 2), before(model, 1), after(model, 2);
  for (int i = 0; i < 6; ++i) whole.step();
  for (int i = 0; i < 3; ++i) before.step();
  after.learner.assign(before.learner.weights().tensors());
  after.learner.resume(before.learner.steps(), moments_of(before.learner.optimizer()));
  for (int i = 0; i < 3; ++i) after.step();
  EXPECT_EQ(after.learner.steps(), 6);
  EXPECT_TRUE(same_bits(after.learner.weights(), whole.learner.weights()));
  const Optimizer &resumed = after.learner.optimizer(), &uncut = whole.learner.optimizer();
  EXPECT_TRUE(same_bits(resumed.first(), uncut.first()));
  EXPECT_TRUE(same_bits(resumed.second(), uncut.second()));
}

TEST(Optimizer, ClipsToTheGlobalNorm) {
  const ModelConfig config = tiny_models()[0].config;
  Context ctx(with_threads(1));
  ParameterValues gradients(config), weights(config);
  double squares = 0;
  for (const auto& spec : tensor_specs(config)) {
    std::ranges::fill(gradients.values(spec.name), 1.5f);
    squares += 2.25 * static_cast<double>(gradients.values(spec.name).size());
  }
  Optimizer optimizer(config, {});
  optimizer.step(gradients, std::sqrt(squares), 1e-3, weights, nullptr, ctx);
  // The first moment is a tenth of the clipped gradient, whose norm is 1.
  squares = 0;
  for (const float value : optimizer.first().all()) squares += static_cast<double>(value) * value;
  EXPECT_NEAR(std::sqrt(squares), 0.1, 1e-6);
}

TEST(Optimizer, AGradientThatIsNotFiniteChangesNothing) {
  const ModelConfig config = tiny_models()[0].config;
  Context ctx(with_threads(1));
  ParameterValues gradients(config), weights(config);
  const ParameterValues untouched(config);
  Optimizer optimizer(config, {});
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW(optimizer.step(gradients, bad, 1e-3, weights, nullptr, ctx), Error);
  }
  EXPECT_EQ(optimizer.steps(), 0);
  EXPECT_TRUE(same_bits(weights, untouched));
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
  refused([](OptimizerOptions& o) { o.eps = 1e-50; });  // 0 in fp32
  refused([](OptimizerOptions& o) { o.decay = std::nan(""); });
  refused([](OptimizerOptions& o) { o.clip = -1; });
}

}  // namespace
}  // namespace mamba3
