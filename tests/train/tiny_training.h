// What the tests of whole models' gradients share: batches and tiny models with their weights.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/tolerance.h"
#include "model/init.h"
#include "model/tiny_models.h"
#include "train/loss_and_gradients.h"

namespace mamba3 {

inline ContextOptions with_threads(int threads) {
  ContextOptions options;
  options.threads = threads;
  return options;
}

// Models that take the general kernels, and models whose activations are bf16: those that every GPU
// scans on tensor cores, and those with kernels of their own on Hopper.
inline std::vector<TinyModel> models_in_bf16() {
  ModelConfig siso;
  siso.width = 64;
  siso.layers = 2;
  siso.vocab = 97;
  siso.mlp_hidden = 88;
  siso.mixer.state = 64;
  siso.mixer.head_dim = 64;
  ModelConfig mimo = siso;
  mimo.mixer.mimo = true;
  mimo.mixer.rank = 4;
  mimo.mlp_hidden = 0;
  mimo.tied_embeddings = false;
  ModelConfig general = siso;
  general.width = 72;
  general.mixer.head_dim = 24;
  general.mixer.state = 72;
  ModelConfig general_mimo = mimo;
  general_mimo.mixer.state = 32;
  general_mimo.mixer.rank = 3;
  general_mimo.mixer.head_dim = 32;
  general_mimo.mixer.out_norm = true;
  general_mimo.mlp_hidden = 72;
  return {{"siso", siso}, {"mimo", mimo}, {"general", general}, {"general mimo", general_mimo}};
}

inline std::vector<TinyModel> all_models() {
  std::vector<TinyModel> out = tiny_models();
  for (const TinyModel& model : models_in_bf16()) out.push_back(model);
  return out;
}

// A batch of its own memory.
struct TokenBatch {
  // Sequences of these lengths; each token's target is the one behind it, the last one's is
  // ignored.
  TokenBatch(std::vector<std::int32_t> ids_in, const std::vector<std::int64_t>& lengths)
      : ids(std::move(ids_in)) {
    for (const std::int64_t length : lengths) {
      for (std::int64_t i = 0; i < length; ++i) {
        const std::int64_t at = bounds.back() + i;
        targets.push_back(i + 1 < length ? ids[at + 1] : kIgnoredTarget);
      }
      bounds.push_back(bounds.back() + length);
    }
  }
  TrainingBatch view() const { return {ids, targets, bounds}; }
  std::vector<std::int32_t> ids, targets;
  std::vector<std::int64_t> bounds{0};
};

inline LossOptions mean_of(std::int64_t targets) {
  LossOptions options;
  options.grad_scale = 1 / static_cast<double>(targets);
  return options;
}

// By the tolerance rule; `plain_errors` as plain_gradient_errors() gives them.
inline void expect_within(const ParameterValues& got,
                          const std::map<std::string, double>& plain_errors,
                          const std::string& name, const std::vector<double>& truth) {
  const double error =
      largest_error(got.values(name), std::span<const double>(truth), ErrorMetric::kRelative);
  const Comparison c = judge(error, plain_errors.at(name), kGradientRounding);
  EXPECT_TRUE(c.ok) << name << ": error " << c.error << ", plain " << c.naive_error << ", bound "
                    << c.bound;
}

// A tiny model with weights drawn at random.
struct Tiny {
  explicit Tiny(const TinyModel& model, Context& ctx)
      : config(model.config), initial(init_tensors(config, DType::kF32, 7, ctx)) {
    // What is 1 at the start is told apart by nothing.
    std::uint32_t seed = 1;
    for (const TensorSpec& spec : tensor_specs(config)) {
      if (spec.large) continue;
      auto* values =
          reinterpret_cast<float*>(const_cast<std::byte*>(initial.tensors.at(spec.name).data));
      for (std::int64_t i = 0; i < initial.tensors.at(spec.name).elements(); ++i) {
        seed = seed * 1664525u + 1013904223u;
        values[i] += static_cast<float>(seed >> 8) * 0x1p-25f - 0.25f;
      }
    }
    weights = bind_weights(config, initial.tensors, initial.memory, ctx);
  }
  ModelConfig config;
  InitialTensors initial;
  ModelWeights weights;
};

}  // namespace mamba3
