// The oracle, in double; in float the plain run that the tolerance rule measures by.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mamba3 {

template <class T>
struct CrossEntropyRef {
  std::vector<T> losses;  // [t]
  std::vector<T> z;       // [t], 0 where ignored
  std::int64_t rows = 0;
  std::int64_t correct = 0;
  std::vector<T> grad_x;  // [t, d]
  std::vector<T> grad_w;  // [v, d]
};

// Contiguous x [t, d] and w [v, d]; see cross_entropy.h.
template <class T>
CrossEntropyRef<T> cross_entropy_ref(const std::vector<T>& x, const std::vector<T>& w,
                                     std::span<const std::int32_t> targets, std::int64_t d,
                                     T z_weight, T grad_scale);

extern template CrossEntropyRef<double> cross_entropy_ref(const std::vector<double>&,
                                                          const std::vector<double>&,
                                                          std::span<const std::int32_t>,
                                                          std::int64_t, double, double);
extern template CrossEntropyRef<float> cross_entropy_ref(const std::vector<float>&,
                                                         const std::vector<float>&,
                                                         std::span<const std::int32_t>,
                                                         std::int64_t, float, float);

}  // namespace mamba3
