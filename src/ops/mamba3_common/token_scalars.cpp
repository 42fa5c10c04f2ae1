#include "ops/mamba3_common/token_scalars.h"

#include <algorithm>
#include <cmath>

namespace mamba3 {
namespace {

// Exact at both ends: log1p(exp(x)) would overflow, and the identity above 20 is 2e-9 off.
double softplus(double x) {
  return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
}

double decay_activation(double x, AActivation activation) {
  if (activation == AActivation::kSoftplus) return softplus(x);
  return x >= 0 ? 1 + x : 1 / (1 - x);
}

}  // namespace

TokenScalars token_scalars(const Mamba3Dims& dims, float dt_raw, float dt_bias, float decay_raw,
                           float trap_raw) {
  TokenScalars out;
  out.dt = softplus(static_cast<double>(dt_raw) + dt_bias);
  out.turning = dims.fixed_steps ? 1 : out.dt;
  const double act = decay_activation(decay_raw, dims.a_activation);
  // Written so that a NaN stays one: max() would hide it behind the floor.
  const double floor = dims.a_floor;
  out.log_decay = -(act < floor ? floor : act) * out.dt;
  // One exponential gives lam and 1 - lam, each with all its digits.
  const double e = std::exp(-std::fabs(static_cast<double>(trap_raw)));
  const double large = out.dt / (1 + e);
  const double small = large * e;
  out.now = trap_raw >= 0 ? large : small;
  out.carry = trap_raw >= 0 ? small : large;
  return out;
}

}  // namespace mamba3
