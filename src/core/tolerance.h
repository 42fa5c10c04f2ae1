// The one rule by which a result is called right: its error against the truth is at most twice the
// error of a plain implementation in the same precision, plus a few roundings; and it is NaN or
// infinite where the truth is. Used by `mamba3 verify` and by the tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

namespace mamba3 {

// kRelative: the largest difference over the largest absolute value of the truth. kCircle: the
// largest difference of angles, in radians, whole turns taken off.
enum class ErrorMetric : std::uint8_t { kRelative, kCircle };

struct Comparison {
  double error = 0;        // of the result
  double naive_error = 0;  // of the plain implementation
  double bound = 0;
  bool same_nonfinite = true;
  bool ok = false;
};

// What is allowed beside the plain run's error, since that may be exact by luck (one token, few
// terms). fp32: the eight roundings of the longest chain that is no sum (norm, bias, rotation,
// decay, skip, gate, rank weight, output), half a unit of the last place each.
inline constexpr double kFloatRounding = 8 * 0x1p-24;
// The same for a gradient, whose chain leads through the forward one and back through its slopes.
inline constexpr double kGradientRounding = 2 * kFloatRounding;
// bf16 inputs of a product: one rounding in each of its two factors; everything else is fp32.
inline constexpr double kBf16Rounding = 2 * 0x1p-9;
// The same for a gradient, where a product of rounded factors is a factor of the next one.
inline constexpr double kBf16GradientRounding = 2 * kBf16Rounding;
// A double run of the oracle: what the goldens are accurate to.
inline constexpr double kGoldenRounding = 1e-9;

inline double circle_distance(double a, double b) {
  constexpr double kTurn = 6.283185307179586476925;
  return std::fabs(std::remainder(a - b, kTurn));
}

// The same NaN, or the same infinity, or both finite.
template <class A, class B>
bool same_kind(A a, B b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  if (std::isinf(a) || std::isinf(b)) return std::isinf(a) && std::isinf(b) && (a > 0) == (b > 0);
  return true;
}

// The largest error of `got`; infinite where only one of the two is finite.
template <class T, class U>
double largest_error(std::span<const T> got, std::span<const U> truth, ErrorMetric metric) {
  if (got.size() != truth.size()) return std::numeric_limits<double>::infinity();
  double worst = 0;
  double scale = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double a = got[i];
    const double b = truth[i];
    if (!same_kind(a, b)) return std::numeric_limits<double>::infinity();
    if (!std::isfinite(b)) continue;
    scale = std::max(scale, std::fabs(b));
    worst =
        std::max(worst, metric == ErrorMetric::kCircle ? circle_distance(a, b) : std::fabs(a - b));
  }
  if (metric == ErrorMetric::kCircle || worst == 0) return worst;
  return scale > 0 ? worst / scale : std::numeric_limits<double>::infinity();
}

// The root of the mean square of the errors over that of the truth (kCircle: in radians); infinite
// as above. Where errors of roundings are compared: it hangs on all elements, not on the worst one.
template <class T, class U>
double rms_error(std::span<const T> got, std::span<const U> truth, ErrorMetric metric) {
  if (got.size() != truth.size()) return std::numeric_limits<double>::infinity();
  double errors = 0;
  double squares = 0;
  double count = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double a = got[i];
    const double b = truth[i];
    if (!same_kind(a, b)) return std::numeric_limits<double>::infinity();
    if (!std::isfinite(b)) continue;
    const double off = metric == ErrorMetric::kCircle ? circle_distance(a, b) : a - b;
    errors += off * off;
    squares += b * b;
    ++count;
  }
  if (errors == 0) return 0;
  if (metric == ErrorMetric::kCircle) return std::sqrt(errors / count);
  return squares > 0 ? std::sqrt(errors / squares) : std::numeric_limits<double>::infinity();
}

// `rounding` is one of the constants above. A plain run that overflows allows nothing more: its
// error counts as none.
inline Comparison judge(double error, double naive_error, double rounding) {
  Comparison out;
  out.error = error;
  out.naive_error = naive_error;
  out.same_nonfinite = std::isfinite(error);
  out.bound = (std::isfinite(naive_error) ? 2 * naive_error : 0) + rounding;
  out.ok = error <= out.bound;
  return out;
}

// Whether an error of roundings is no larger than the authors': both root mean squares, `authors`
// of a run that rounds as their kernels do. Sums in another order may differ by kFloatRounding.
inline bool within_authors(double rms, double authors) {
  return rms <= authors + kFloatRounding;
}

template <class T, class N, class U>
Comparison compare(std::span<const T> got, std::span<const N> naive, std::span<const U> truth,
                   double rounding, ErrorMetric metric = ErrorMetric::kRelative) {
  return judge(largest_error(got, truth, metric), largest_error(naive, truth, metric), rounding);
}

}  // namespace mamba3
