// The functions of the recurrence, written out plainly: for the oracle and the other slow runs, and
// for nothing that is fast.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

template <class T>
T ref_softplus(T v) {
  return std::max(v, T(0)) + std::log1p(std::exp(-std::abs(v)));
}

template <class T>
T ref_sigmoid(T v) {
  if (v >= 0) return T(1) / (T(1) + std::exp(-v));
  const T e = std::exp(v);
  return e / (T(1) + e);
}

template <class T>
T ref_silu(T v) {
  return v * ref_sigmoid(v);
}

template <class T>
T ref_decay_activation(T v, AActivation activation) {
  if (activation == AActivation::kSoftplus) return ref_softplus(v);
  return v >= 0 ? T(1) + v : T(1) / (T(1) - v);
}

// v / rms(v) * weight
template <class T>
std::vector<T> ref_rms_norm(const T* v, std::int64_t count, const T* weight) {
  constexpr double kEps = 1e-5;
  T squares = 0;
  for (std::int64_t i = 0; i < count; ++i) squares += v[i] * v[i];
  const T rms = std::sqrt(squares / static_cast<T>(count) + static_cast<T>(kEps));
  std::vector<T> out(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) out[i] = v[i] / rms * weight[i];
  return out;
}

// What ordinary RoPE turns pair i of s by with every token, in radians: 10000^(-i / s), in whole
// parts of 2^-32 of a turn.
template <class T>
T ref_fixed_step(std::int64_t pair, const Mamba3Dims& dims) {
  constexpr double kTurn = 6.28318530717958647692;
  constexpr double kParts = 4294967296.0;
  const double radians =
      std::pow(10000.0, -static_cast<double>(pair) / static_cast<double>(dims.angles));
  return static_cast<T>(std::round(radians / kTurn * kParts) / kParts * kTurn);
}

// Turns the pairs of one row by the angles of one head.
template <class T>
void ref_rotate(std::vector<T>& v, const T* angle, const Mamba3Dims& dims) {
  for (std::int64_t i = 0; i < dims.angles; ++i) {
    T& a = dims.mimo ? v[i] : v[2 * i];
    T& b = dims.mimo ? v[i + dims.state / 2] : v[2 * i + 1];
    const T c = std::cos(angle[i]);
    const T s = std::sin(angle[i]);
    const T turned_a = a * c - b * s;
    const T turned_b = a * s + b * c;
    a = turned_a;
    b = turned_b;
  }
}

}  // namespace mamba3
