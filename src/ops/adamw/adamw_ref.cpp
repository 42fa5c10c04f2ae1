#include "ops/adamw/adamw_ref.h"

#include <cmath>

namespace mamba3 {

template <class T>
void adamw_ref(const AdamwArgs& args, const std::vector<T>& grad, std::vector<T>& weights,
               std::vector<T>& first, std::vector<T>& second) {
  const auto beta1 = static_cast<T>(args.beta1), beta2 = static_cast<T>(args.beta2);
  const auto step = static_cast<double>(args.step);
  const auto left1 = static_cast<T>(1 - std::pow(args.beta1, step));
  const auto left2 = static_cast<T>(1 - std::pow(args.beta2, step));
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const T g = grad[i] * static_cast<T>(args.grad_scale);
    first[i] = beta1 * first[i] + (1 - beta1) * g;
    second[i] = beta2 * second[i] + (1 - beta2) * g * g;
    weights[i] -= static_cast<T>(args.rate) * static_cast<T>(args.decay) * weights[i];
    weights[i] -= static_cast<T>(args.rate) * (first[i] / left1) /
                  (std::sqrt(second[i] / left2) + static_cast<T>(args.eps));
  }
}

template void adamw_ref(const AdamwArgs&, const std::vector<double>&, std::vector<double>&,
                        std::vector<double>&, std::vector<double>&);
template void adamw_ref(const AdamwArgs&, const std::vector<float>&, std::vector<float>&,
                        std::vector<float>&, std::vector<float>&);

}  // namespace mamba3
