#include "ops/cross_entropy/cross_entropy_ref.h"

#include <algorithm>
#include <cmath>

namespace mamba3 {
namespace {

template <class T>
void add_row(const T* x, const std::vector<T>& w, std::int64_t target, std::int64_t row,
             std::int64_t d, T z_weight, T grad_scale, CrossEntropyRef<T>& out) {
  const std::int64_t v = static_cast<std::int64_t>(w.size()) / d;
  std::vector<T> logits(static_cast<std::size_t>(v));
  for (std::int64_t j = 0; j < v; ++j) {
    for (std::int64_t i = 0; i < d; ++i) logits[j] += x[i] * w[j * d + i];
  }
  const T largest = *std::max_element(logits.begin(), logits.end());
  T sum = 0;
  for (const T logit : logits) sum += std::exp(logit - largest);
  const T z = largest + std::log(sum);
  out.losses[row] = z - logits[target];
  out.z[row] = z;
  ++out.rows;
  out.correct += logits[target] == largest ? 1 : 0;
  for (std::int64_t j = 0; j < v; ++j) {
    const T probability = std::exp(logits[j] - z);
    const T grad =
        grad_scale * (probability - (j == target ? T(1) : T(0)) + 2 * z_weight * z * probability);
    for (std::int64_t i = 0; i < d; ++i) {
      out.grad_x[row * d + i] += grad * w[j * d + i];
      out.grad_w[j * d + i] += grad * x[i];
    }
  }
}

}  // namespace

template <class T>
CrossEntropyRef<T> cross_entropy_ref(const std::vector<T>& x, const std::vector<T>& w,
                                     std::span<const std::int32_t> targets, std::int64_t d,
                                     T z_weight, T grad_scale) {
  CrossEntropyRef<T> out;
  out.losses.resize(targets.size());
  out.z.resize(targets.size());
  out.grad_x.resize(x.size());
  out.grad_w.resize(w.size());
  for (std::size_t row = 0; row < targets.size(); ++row) {
    if (targets[row] < 0) continue;
    const auto at = static_cast<std::int64_t>(row);
    add_row(x.data() + at * d, w, targets[row], at, d, z_weight, grad_scale, out);
  }
  return out;
}

template CrossEntropyRef<double> cross_entropy_ref(const std::vector<double>&,
                                                   const std::vector<double>&,
                                                   std::span<const std::int32_t>, std::int64_t,
                                                   double, double);
template CrossEntropyRef<float> cross_entropy_ref(const std::vector<float>&,
                                                  const std::vector<float>&,
                                                  std::span<const std::int32_t>, std::int64_t,
                                                  float, float);

}  // namespace mamba3
