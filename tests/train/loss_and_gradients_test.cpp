#include "train/loss_and_gradients.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "core/arena.h"
#include "core/tolerance.h"
#include "io/config_file.h"
#include "io/tensor_file.h"
#include "mamba3/error.h"
#include "model/mixer.h"
#include "tiny_training.h"
#include "train/reference_gradients.h"

namespace mamba3 {
namespace {

namespace fs = std::filesystem;
using Tensors = std::map<std::string, TensorRef>;

std::vector<double> doubles(std::span<const float> values) {
  return {values.begin(), values.end()};
}

// A folder of goldens of models that holds gradients, with what stands in it.
struct ModelGolden {
  explicit ModelGolden(const fs::path& folder)
      : weights(read_folder_weights(folder)),
        golden(read_safetensors(folder / "golden.safetensors")) {
    config = read_config(folder / "config.json");
    const auto fc1 = weights.tensors.find("backbone.layers.0.mlp.fc1.weight");
    if (fc1 != weights.tensors.end()) config.mlp_hidden = fc1->second.shape[0] / 2;
  }
  std::vector<double> numbers(const std::string& name) const {
    const TensorRef& tensor = golden.tensors.at(name);
    std::vector<double> out(static_cast<std::size_t>(tensor.elements()));
    std::memcpy(out.data(), tensor.data, out.size() * sizeof(double));
    return out;
  }
  TokenBatch batch() const {
    const TensorRef& tensor = golden.tensors.at("ids");
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < tensor.elements(); ++i) {
      std::int64_t id = 0;
      std::memcpy(&id, tensor.data + 8 * i, 8);
      ids.push_back(static_cast<std::int32_t>(id));
    }
    return {ids,
            std::vector<std::int64_t>(static_cast<std::size_t>(tensor.shape[0]), tensor.shape[1])};
  }
  ModelConfig config;
  TensorFile weights, golden;
};

std::vector<fs::path> golden_folders() {
  std::vector<fs::path> out;
  for (const fs::path& root :
       {fs::path(MAMBA3_TEST_DATA) / "golden", fs::path(MAMBA3_SHARED_DATA) / "golden"}) {
    if (!fs::is_directory(root)) continue;
    for (const auto& entry : fs::directory_iterator(root)) {
      if (!entry.path().filename().string().starts_with("lm_")) continue;
      const auto golden = read_safetensors(entry.path() / "golden.safetensors");
      if (golden.tensors.contains("grad.backbone.norm_f.weight")) out.push_back(entry.path());
    }
  }
  return out;
}

CrossEntropySums add_gradients(const ModelConfig& config, const ModelWeights& weights,
                               const TrainingBatch& batch, const LossOptions& options,
                               ParameterValues& gradients, Context& ctx) {
  CrossEntropySums sums;
  loss_and_gradients(config, weights, batch, options, gradients, &sums, ctx);
  return sums;
}

TEST(GoldenModelGradients, OracleAndCpuAgreeWithThem) {
  const auto folders = golden_folders();
  ASSERT_GE(folders.size(), 2u);
  for (const fs::path& folder : folders) {
    SCOPED_TRACE(folder.string());
    const ModelGolden golden(folder);
    const TokenBatch batch = golden.batch();
    const std::int64_t count = std::ssize(batch.ids) - (std::ssize(batch.bounds) - 1);
    const LossOptions options = mean_of(count);
    const Tensors& tensors = golden.weights.tensors;
    const auto oracle = reference_gradients<double>(golden.config, tensors, batch.view(), options);
    const auto plain = plain_gradient_errors(golden.config, tensors, batch.view(), options, oracle);
    const double loss = golden.numbers("loss")[0];
    EXPECT_NEAR(oracle.loss / static_cast<double>(count), loss, loss * kGoldenRounding);

    Context ctx(with_threads(2));
    const ModelWeights weights = bind_weights(golden.config, tensors, nullptr, ctx);
    ParameterValues gradients(golden.config);
    const auto sums = add_gradients(golden.config, weights, batch.view(), options, gradients, ctx);
    EXPECT_EQ(sums.rows, count);
    EXPECT_NEAR(sums.loss / static_cast<double>(count), loss, loss * 1e-6);
    for (const auto& [name, values] : oracle.tensors) {
      const auto truth = golden.numbers("grad." + name);
      EXPECT_LE(largest_error(std::span<const double>(values), std::span<const double>(truth),
                              ErrorMetric::kRelative),
                kGoldenRounding)
          << name;
      expect_within(gradients, plain, name, truth);
    }
  }
}

TEST(LossAndGradients, AgreeWithTheOracle) {
  Context ctx(with_threads(2));
  for (const TinyModel& model : tiny_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, ctx);
    const TokenBatch batch(random_ids(90, model.config.vocab, 5), {70, 0, 1, 19});
    LossOptions options = mean_of(70);
    options.z_weight = 0.01;
    const Tensors& tensors = tiny.initial.tensors;
    const auto truth = reference_gradients<double>(tiny.config, tensors, batch.view(), options);
    const auto plain = plain_gradient_errors(tiny.config, tensors, batch.view(), options, truth);
    ParameterValues gradients(tiny.config);
    const auto sums =
        add_gradients(tiny.config, tiny.weights, batch.view(), options, gradients, ctx);
    EXPECT_NEAR(sums.loss, truth.loss, truth.loss * 1e-6);
    EXPECT_NEAR(sums.squared_z, truth.squared_z, truth.squared_z * 1e-6);
    for (const auto& [name, values] : truth.tensors) {
      expect_within(gradients, plain, name, values);
    }
    CrossEntropySums alone;
    loss_of(tiny.config, tiny.weights, batch.view(), options, &alone, ctx);
    EXPECT_EQ(alone.loss, sums.loss);
  }
}

// Along a random direction of all tensors together: it finds what oracle and fast path may have in
// common. The sequences go on from `states`.
void expect_finite_differences(const Tiny& tiny, const TokenBatch& batch,
                               const ReferenceStates<double>& states) {
  LossOptions options;
  options.z_weight = 0.01;
  const auto gradients = [&](const Tensors& tensors) {
    ReferenceStates<double> own = states;
    return reference_gradients<double>(tiny.config, tensors, batch.view(), options, 0, &own);
  };
  const auto at = gradients(tiny.initial.tensors);
  // Tensors are F32, so each element counts with how far rounding lets it move.
  const auto moved = [&](double step) {
    double slope = 0;
    std::map<std::string, std::vector<float>> values;
    Tensors tensors;
    std::uint32_t seed = 3;
    for (const auto& [name, tensor] : tiny.initial.tensors) {
      auto& to = values[name] = widen(tensor);
      const std::vector<double>& gradient = at.tensors.at(name);
      for (std::size_t i = 0; i < to.size(); ++i) {
        seed = seed * 1664525u + 1013904223u;
        const float before = to[i];
        to[i] += static_cast<float>((seed >> 31) != 0 ? step : -step);
        slope += gradient[i] * (static_cast<double>(to[i]) - before);
      }
      tensors[name] = {reinterpret_cast<const std::byte*>(to.data()), DType::kF32, tensor.shape};
    }
    const auto found = gradients(tensors);
    return std::pair(found.loss + options.z_weight * found.squared_z, slope);
  };
  const auto [up, slope_up] = moved(0x1p-17);
  const auto [down, slope_down] = moved(-0x1p-17);
  EXPECT_NEAR((up - down) / (slope_up - slope_down), 1.0, 1e-4);
}

TEST(LossAndGradients, OracleEqualsFiniteDifferences) {
  Context ctx(with_threads(1));
  for (const TinyModel& model : tiny_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, ctx);
    ReferenceStates<double> states(
        2, std::vector(static_cast<std::size_t>(tiny.config.layers),
                       Mamba3RefState<double>::zeros(mixer_dims(tiny.config))));
    const TokenBatch batch(random_ids(20, model.config.vocab, 5), {13, 7});
    expect_finite_differences(tiny, batch, states);
    const TokenBatch before(random_ids(16, model.config.vocab, 6), {9, 7});
    reference_gradients<double>(tiny.config, tiny.initial.tensors, before.view(), {}, 0, &states);
    expect_finite_differences(tiny, batch, states);
  }
}

TEST(LossAndGradients, BitsDependOnNoThread) {
  Context two(with_threads(2));
  for (const TinyModel& model : tiny_models()) {
    const Tiny tiny(model, two);
    const TokenBatch batch(random_ids(300, model.config.vocab, 9), {130, 100, 70});
    ParameterValues first(tiny.config);
    add_gradients(tiny.config, tiny.weights, batch.view(), {}, first, two);
    for (const int threads : {1, 3}) {
      Context ctx(with_threads(threads));
      ParameterValues again(tiny.config);
      add_gradients(tiny.config, tiny.weights, batch.view(), {}, again, ctx);
      for (const TensorSpec& spec : tensor_specs(tiny.config)) {
        const auto a = first.values(spec.name), b = again.values(spec.name);
        EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size_bytes()), 0) << spec.name;
      }
    }
  }
}

TEST(LossAndGradients, RecomputingChangesNothingButMemory) {
  for (const TinyModel& model : tiny_models()) {
    SCOPED_TRACE(model.name);
    ModelConfig config = model.config;
    config.layers = 4;
    Context setup(with_threads(1));
    const Tiny tiny({model.name, config}, setup);
    const TokenBatch batch(random_ids(300, config.vocab, 9), {130, 100, 70});
    ParameterValues kept(config);
    std::size_t least = std::numeric_limits<std::size_t>::max();
    for (const Recompute recompute : {Recompute::kNone, Recompute::kScan, Recompute::kBlock}) {
      Context ctx(with_threads(2));
      LossOptions options;
      options.recompute = recompute;
      ParameterValues again(config);
      ParameterValues& gradients = recompute == Recompute::kNone ? kept : again;
      add_gradients(config, tiny.weights, batch.view(), options, gradients, ctx);
      EXPECT_LT(ctx.workspace().peak_bytes(), least);
      least = ctx.workspace().peak_bytes();
      for (const TensorSpec& spec : tensor_specs(config)) {
        const auto a = kept.values(spec.name), b = gradients.values(spec.name);
        EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size_bytes()), 0) << spec.name;
      }
    }
  }
}

// Accumulation over batches: packed or one after the other is the same but for rounding.
TEST(LossAndGradients, PackedEqualsSeparate) {
  Context ctx(with_threads(2));
  for (const TinyModel& model : tiny_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, ctx);
    const auto ids = random_ids(120, model.config.vocab, 11);
    const TokenBatch packed(ids, {70, 50});
    const TokenBatch first({ids.begin(), ids.begin() + 70}, {70});
    const TokenBatch second({ids.begin() + 70, ids.end()}, {50});
    ParameterValues together(tiny.config), apart(tiny.config);
    const auto sums = add_gradients(tiny.config, tiny.weights, packed.view(), {}, together, ctx);
    double loss = 0;
    for (const TokenBatch* batch : {&first, &second}) {
      loss += add_gradients(tiny.config, tiny.weights, batch->view(), {}, apart, ctx).loss;
    }
    EXPECT_NEAR(sums.loss, loss, loss * 1e-9);
    for (const TensorSpec& spec : tensor_specs(tiny.config)) {
      const auto truth = doubles(apart.values(spec.name));
      EXPECT_LE(largest_error(std::span<const float>(together.values(spec.name)),
                              std::span<const double>(truth), ErrorMetric::kRelative),
                kGradientRounding)
          << spec.name;
    }
  }
}

// Whatever was there before; the first of two batches, one without tokens, one without targets.
TEST(LossAndGradients, AssignedEqualAddedToZeros) {
  Context ctx(with_threads(2));
  for (const TinyModel& model : tiny_models()) {
    SCOPED_TRACE(model.name);
    const Tiny tiny(model, ctx);
    const TokenBatch some(random_ids(90, model.config.vocab, 5), {70, 0, 20}), none({}, {});
    const TokenBatch without_targets(random_ids(2, model.config.vocab, 6), {1, 1});
    for (const TokenBatch* batch : {&some, &none, &without_targets}) {
      for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
        LossOptions options;
        options.compute = compute;
        ParameterValues added(tiny.config), assigned(tiny.config);
        for (const TensorSpec& spec : tensor_specs(tiny.config)) {
          std::ranges::fill(assigned.values(spec.name), std::numeric_limits<float>::quiet_NaN());
        }
        add_gradients(tiny.config, tiny.weights, batch->view(), options, added, ctx);
        options.accumulate_gradients = false;
        add_gradients(tiny.config, tiny.weights, batch->view(), options, assigned, ctx);
        options.accumulate_gradients = true;
        for (ParameterValues* to : {&added, &assigned}) {
          add_gradients(tiny.config, tiny.weights, some.view(), options, *to, ctx);
        }
        EXPECT_TRUE(std::ranges::equal(added.all(), assigned.all()));
      }
    }
  }
}

TEST(LossAndGradients, RefuseWrongBatches) {
  Context ctx(with_threads(1));
  const Tiny tiny(tiny_models()[0], ctx);
  ParameterValues gradients(tiny.config);
  const auto refused = [&](const TrainingBatch& batch) {
    EXPECT_THROW(add_gradients(tiny.config, tiny.weights, batch, {}, gradients, ctx), Error);
  };
  const TokenBatch good(random_ids(10, 97, 1), {10});
  TrainingBatch batch = good.view();
  batch.targets = batch.targets.first(9);
  refused(batch);
  const std::vector<std::int64_t> bounds = {0, 9};
  batch = good.view();
  batch.cu_seqlens = bounds;
  refused(batch);
  std::vector<std::int32_t> ids = good.ids;
  ids[3] = 1000;
  batch = good.view();
  batch.ids = ids;
  refused(batch);
  EXPECT_THROW(static_cast<void>(gradients.at("lm_head.weight")), Error);
}

}  // namespace
}  // namespace mamba3
