#include "train/optimizer.h"

#include <cmath>
#include <limits>

#include "core/check.h"
#include "ops/adamw/adamw.h"

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

void check_optimizer(const OptimizerOptions& options) {
  for (const auto& [name, beta] :
       {std::pair("beta1", options.beta1), std::pair("beta2", options.beta2)}) {
    check_number(name, beta, beta >= 0 && beta < 1, "at least 0 and below 1");
  }
  // It is added in fp32, where a smaller one may be 0: weights without gradients became NaN.
  check_number("eps", options.eps, options.eps >= std::numeric_limits<float>::min(),
               "a number above 0, at least 1.2e-38");
  check_number("the weight decay", options.decay, options.decay >= 0, "at least 0");
  check_number("the norm that gradients are clipped to", options.clip, options.clip >= 0,
               "a number above 0, or 0 for no clipping");
}

Optimizer::Optimizer(const ModelConfig& config, const OptimizerOptions& options,
                     const std::shared_ptr<Gpu>& gpu)
    : options_(options), first_(config, gpu), second_(config, gpu) {
  check_optimizer(options);
}

void Optimizer::step(const ParameterValues& gradients, double norm, double rate,
                     ParameterValues& weights, Bf16* rounded, Context& ctx) {
  check_input(std::isfinite(norm), "gradients have the norm ", norm, "; expected a finite number");
  AdamwArgs args;
  args.step = ++steps_;
  args.rate = rate;
  args.beta1 = options_.beta1;
  args.beta2 = options_.beta2;
  args.eps = options_.eps;
  args.grad_scale = clipped(norm, options_.clip);
  for (const ParameterGroup group : kParameterGroups) {
    const std::span<float> values = weights.group(group);
    args.count = std::ssize(values);
    args.weights = values.data();
    args.grad = gradients.group(group).data();
    args.first = first_.group(group).data();
    args.second = second_.group(group).data();
    args.rounded = group == ParameterGroup::kMatrices ? rounded : nullptr;
    args.decay = group == ParameterGroup::kPlain ? 0 : options_.decay;
    adamw(args, ctx);
  }
}

void Optimizer::resume(std::int64_t steps, const std::map<std::string, TensorRef>& moments) {
  check_input(steps >= 0, "an optimizer cannot go on after ", steps, " steps");
  steps_ = steps;
  first_.assign(moments, "first.");
  second_.assign(moments, "second.");
}

}  // namespace mamba3
