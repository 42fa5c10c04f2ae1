#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "ops/adamw/adamw.h"
#include "ops/global_norm/global_norm.h"

namespace mamba3 {
namespace {

void check_number(const char* name, double value, bool ok, const char* expected) {
  check_input(std::isfinite(value) && ok, name, " is ", value, "; expected ", expected);
}

// What clipping scales gradients of this norm by.
double clipped(double norm, double most) {
  return most > 0 && norm > most ? most / norm : 1;
}

}  // namespace

bool decays(const std::string& name) {
  constexpr const char* kNot[] = {".dt_bias",    ".D",           "_bias",
                                  "norm.weight", "norm2.weight", "norm_f.weight"};
  return std::none_of(std::begin(kNot), std::end(kNot),
                      [&](const char* end) { return name.ends_with(end); });
}

void check_optimizer(const OptimizerOptions& options) {
  for (const auto& [name, beta] :
       {std::pair("beta1", options.beta1), std::pair("beta2", options.beta2)}) {
    check_number(name, beta, beta >= 0 && beta < 1, "at least 0 and below 1");
  }
  check_number("eps", options.eps, options.eps > 0, "a number above 0");
  check_number("the weight decay", options.decay, options.decay >= 0, "at least 0");
  check_number("the norm that gradients are clipped to", options.clip, options.clip >= 0,
               "a number above 0, or 0 for no clipping");
}

Optimizer::Optimizer(const ModelConfig& config, const OptimizerOptions& options)
    : config_(config), options_(options), first_(config), second_(config) {
  check_optimizer(options);
}

double Optimizer::step(const ParameterValues& gradients, double grad_scale, double rate,
                       ParameterValues& weights, Context& ctx) {
  double norm = 0;
  global_norm({gradients.all(), &norm}, ctx);
  norm *= std::abs(grad_scale);
  if (!std::isfinite(norm)) return norm;
  AdamwArgs args;
  args.step = ++steps_;
  args.rate = rate;
  args.beta1 = options_.beta1;
  args.beta2 = options_.beta2;
  args.eps = options_.eps;
  args.grad_scale = grad_scale * clipped(norm, options_.clip);
  for (const TensorSpec& spec : tensor_specs(config_)) {
    const std::span<float> values = weights.values(spec.name);
    args.count = std::ssize(values);
    args.weights = values.data();
    args.grad = gradients.at(spec.name);
    args.first = first_.at(spec.name);
    args.second = second_.at(spec.name);
    args.decay = decays(spec.name) ? options_.decay : 0;
    adamw(args, ctx);
  }
  return norm;
}

void Optimizer::resume(std::int64_t steps, const ParameterValues& first,
                       const ParameterValues& second) {
  check_input(steps >= 0, "an optimizer cannot go on after ", steps, " steps");
  steps_ = steps;
  for (const TensorSpec& spec : tensor_specs(config_)) {
    std::ranges::copy(first.values(spec.name), first_.at(spec.name));
    std::ranges::copy(second.values(spec.name), second_.at(spec.name));
  }
}

}  // namespace mamba3
