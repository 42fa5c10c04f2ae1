#include "engine/verify_model_gradients.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "core/check.h"
#include "core/mirror.h"
#include "core/tolerance.h"
#include "engine/checkpoint_files.h"
#include "io/tensor_file.h"
#include "train/reference_gradients.h"

namespace mamba3 {
namespace {

constexpr const char* kPrefix = "grad.";

// The ids of the file, each a target of the one before it.
struct GoldenBatch {
  explicit GoldenBatch(const TensorRef& tensor) {
    const std::int64_t length = tensor.shape[1];
    for (std::int64_t i = 0; i < tensor.elements(); ++i) {
      std::int64_t id = 0;
      std::memcpy(&id, tensor.data + i * static_cast<std::int64_t>(sizeof(id)), sizeof(id));
      ids.push_back(static_cast<std::int32_t>(id));
      if (i % length != 0) targets.back() = ids.back();
      targets.push_back(kIgnoredTarget);
      if (i % length == 0) bounds.push_back(i);
    }
    bounds.push_back(tensor.elements());
    options.grad_scale = 1 / static_cast<double>(tensor.shape[0] * (length - 1));
  }
  TrainingBatch view() const { return {ids, targets, bounds}; }

  std::vector<std::int32_t> ids, targets;
  std::vector<std::int64_t> bounds;
  LossOptions options;  // the mean over the targets
};

std::vector<double> numbers(const TensorFile& golden, const TensorSpec& spec,
                            const std::string& origin) {
  const auto it = golden.tensors.find(kPrefix + spec.name);
  check_input(it != golden.tensors.end() && it->second.dtype == DType::kF64 &&
                  it->second.shape == spec.shape,
              origin, " holds gradients, but not ", kPrefix, spec.name, " ",
              shape_string(spec.shape), " in F64");
  std::vector<double> out(static_cast<std::size_t>(it->second.elements()));
  std::memcpy(out.data(), it->second.data, out.size() * sizeof(double));
  return out;
}

bool has_gradients(const TensorFile& golden) {
  return std::any_of(golden.tensors.begin(), golden.tensors.end(),
                     [](const auto& each) { return each.first.starts_with(kPrefix); });
}

template <class T>
double error(std::span<const T> values, const std::vector<double>& truth) {
  return largest_error(values, std::span<const double>(truth), ErrorMetric::kRelative);
}

}  // namespace

void verify_model_gradients(const std::filesystem::path& file, const VerifyOptions& options,
                            VerifyReport& report, Context& ctx) {
  const TensorFile golden = read_safetensors(file);
  if (!has_gradients(golden)) return;
  CheckpointFiles files = open_checkpoint_files(file.parent_path());
  choose_a_activation(files.config, {}, ctx);
  const ModelConfig& config = files.config;
  const auto& tensors = files.weights->tensors;
  const GoldenBatch batch(golden.tensors.at("ids"));
  const auto exact = reference_gradients<double>(config, tensors, batch.view(), batch.options);
  const auto note = [&](const std::string& name, const Comparison& c) {
    report.cases.push_back({file.string(), name, c.error, c.naive_error, c.bound, c.ok});
  };
  for (const TensorSpec& spec : tensor_specs(config)) {
    const auto truth = numbers(golden, spec, file.string());
    const double of_oracle = error(std::span<const double>(exact.tensors.at(spec.name)), truth);
    note(kPrefix + spec.name + " (oracle)", judge(of_oracle, 0, kGoldenRounding));
  }
  if (options.dtype != ComputeDType::kF32) return;
  // Against the oracle: a wrong file would make any error look allowed.
  const auto plain_errors =
      plain_gradient_errors(config, tensors, batch.view(), batch.options, exact);
  const ModelWeights weights = bind_weights(config, tensors, files.weights, ctx);
  ParameterValues gradients(config, ctx.gpu());
  CrossEntropySums sums;
  const Mirror<CrossEntropySums> there({&sums, 1}, ctx);
  loss_and_gradients(config, weights, batch.view(), batch.options, gradients, there.data(), ctx);
  const ParameterValues found = gradients.host_copy();
  for (const TensorSpec& spec : tensor_specs(config)) {
    const std::span<const float> got = found.values(spec.name);
    const double of_pass = error(got, numbers(golden, spec, file.string()));
    note(kPrefix + spec.name + " (backward)",
         judge(of_pass, plain_errors.at(spec.name), kGradientRounding));
  }
}

}  // namespace mamba3
