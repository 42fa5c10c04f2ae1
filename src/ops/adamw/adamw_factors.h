// The numbers that all elements of a step share, for either backend: in double until they meet an
// element.
#pragma once

#include <cmath>

#include "ops/adamw/adamw.h"

namespace mamba3 {

struct AdamwFactors {
  explicit AdamwFactors(const AdamwArgs& args)
      : grad(static_cast<float>(args.grad_scale)),
        take1(static_cast<float>(1 - args.beta1)),
        keep2(static_cast<float>(args.beta2)),
        take2(static_cast<float>(1 - args.beta2)),
        keep(static_cast<float>(1 - args.rate * args.decay)),
        eps(static_cast<float>(args.eps)) {
    const auto step = static_cast<double>(args.step);
    rate = static_cast<float>(args.rate / (1 - std::pow(args.beta1, step)));
    root = static_cast<float>(1 / std::sqrt(1 - std::pow(args.beta2, step)));
  }
  float grad, take1, keep2, take2, keep, eps;
  float rate;  // over the bias of first
  float root;  // 1 over the root of the bias of second
};

}  // namespace mamba3
