#include "ops/mamba3_scan_backward/token_scalars_backward.h"

#include <cmath>

namespace mamba3 {
namespace {

// sigmoid(x) and 1 - sigmoid(x), each with all its digits.
struct Sigmoid {
  double at, rest;
};

Sigmoid sigmoid(double x) {
  const double e = std::exp(-std::fabs(x));
  const double large = 1 / (1 + e);
  const double small = large * e;
  return x >= 0 ? Sigmoid{large, small} : Sigmoid{small, large};
}

// act(x) and its slope, which is 1 at 0 (docs/SEMANTICS.md, section 8).
struct Activation {
  double at, slope;
};

Activation decay_activation(double x, AActivation activation) {
  if (activation == AActivation::kSoftplus) {
    return {std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))), sigmoid(x).at};
  }
  if (x >= 0) return {1 + x, 1};
  const double at = 1 / (1 - x);
  return {at, at * at};
}

}  // namespace

RawScalarGradients token_scalars_backward(const Mamba3Dims& dims, float dt_raw, float dt_bias,
                                          float decay_raw, float trap_raw,
                                          const TokenScalars& scalars,
                                          const TokenScalarGradients& grads) {
  const Sigmoid dt_slope = sigmoid(static_cast<double>(dt_raw) + dt_bias);
  const Sigmoid lam = sigmoid(trap_raw);
  const Activation act = decay_activation(decay_raw, dims.a_activation);
  const double floor = dims.a_floor;
  const bool floored = act.at < floor;
  const double a = -(floored ? floor : act.at);
  const double turning = dims.fixed_steps ? 0 : grads.turning;
  const double grad_dt =
      turning + grads.now * lam.at + grads.carry * lam.rest + grads.log_decay * a;
  RawScalarGradients out;
  out.dt_raw = static_cast<float>(grad_dt * dt_slope.at);
  out.trap_raw = static_cast<float>((grads.now - grads.carry) * scalars.dt * lam.at * lam.rest);
  // At the floor itself the slope is 0, as the oracle has it.
  if (!floored && act.at != floor) {
    out.decay_raw = static_cast<float>(-grads.log_decay * scalars.dt * act.slope);
  }
  return out;
}

}  // namespace mamba3
