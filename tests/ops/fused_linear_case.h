// A product with what stands around it, and what it should give: everything in double, from the
// numbers as the product is documented to round them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "op_test_helpers.h"
#include "ops/linear/fused_linear.h"
#include "ops/rms_norm/rms_norm_ref.h"

namespace mamba3::testing {

struct FusedCase {
  std::int64_t rows = 1, n = 1, k = 1;  // n: columns of y
  bool norm = false, swiglu = false, accumulate = false;
  Compute compute = Compute::kF32;
  DType weights = DType::kF32;
  bool x_is_bf16 = false, y_is_bf16 = false;
  LinearPath path = LinearPath::kSkinny;  // on a GPU
  std::int64_t rest = 0;                  // of the n outputs, that go to `rest` in fp32

  std::string name() const {
    return std::to_string(rows) + " x " + std::to_string(n) + " x " + std::to_string(k) +
           (norm ? ", norm" : "") + (swiglu ? ", swiglu" : "") + (accumulate ? ", sum" : "") +
           (compute == Compute::kBf16 ? ", bf16" : ", fp32") +
           (weights == DType::kBf16 ? " on bf16" : " on fp32") + (x_is_bf16 ? ", x bf16" : "") +
           (y_is_bf16 ? ", y bf16" : "") + (path == LinearPath::kGemm ? ", many" : "") +
           (rest > 0 ? ", rest " + std::to_string(rest) : "");
  }
};

// Inputs, and for each number of y the truth and how far a right answer may be from it.
struct FusedData {
  explicit FusedData(const FusedCase& fused)
      : x(random_floats(fused.rows * fused.k, 3)),
        norm(random_floats(fused.k, 4, 0.2f)),
        w(random_floats((fused.swiglu ? 2 : 1) * fused.n * fused.k, 5,
                        2 / std::sqrt(static_cast<float>(fused.k)))),
        before(random_floats(fused.rows * fused.n, 6)) {
    for (float& value : norm) value += 1;
    if (fused.x_is_bf16) round(x);
    if (fused.weights == DType::kBf16) round(w);
    for (const float value : w) w_bf16.push_back(to_bf16(value));
    make_truth(fused);
  }

  std::span<const std::byte> weight_bytes(DType dtype) const {
    return dtype == DType::kBf16 ? std::as_bytes(std::span(w_bf16)) : std::as_bytes(std::span(w));
  }

  std::vector<float> x, norm, w, before;
  std::vector<Bf16> w_bf16;
  std::vector<double> truth, bound;

 private:
  static void round(std::vector<float>& values) {
    for (float& value : values) value = to_float(to_bf16(value));
  }

  struct Sum {
    double value = 0, error = 0;
  };
  Sum product(const FusedCase& fused, const std::vector<float>& from, std::int64_t row,
              std::int64_t out) const {
    Sum sum;
    double magnitude = 0, largest = 0;
    for (std::int64_t i = 0; i < fused.k; ++i) {
      float weight = w[out * fused.k + i];
      if (fused.compute == Compute::kBf16) weight = to_float(to_bf16(weight));
      const double term = static_cast<double>(from[row * fused.k + i]) * weight;
      sum.value += term;
      magnitude += std::abs(term);
      largest = std::max(largest, std::abs(term));
    }
    // fp32 sums; tensor cores keep two bits less of a product's tail.
    sum.error = magnitude * 0x1p-22 * (static_cast<double>(fused.k) / 16 + 6);
    // The norm in fp32 is off by a few units of the last place, which now and then tips the
    // rounding of a number to bf16.
    if (fused.norm) sum.error += magnitude * 0x1p-21;
    if (fused.norm && fused.compute == Compute::kBf16) sum.error += 2 * largest * 0x1p-8;
    return sum;
  }

  void make_truth(const FusedCase& fused) {
    std::vector<float> from = x;
    if (fused.norm) {
      const auto normed = rms_norm_ref({x.begin(), x.end()}, {norm.begin(), norm.end()}, fused.rows,
                                       fused.k, 1e-5f);
      std::transform(normed.begin(), normed.end(), from.begin(),
                     [](double value) { return static_cast<float>(value); });
    }
    if (fused.compute == Compute::kBf16) round(from);
    for (std::int64_t i = 0; i < fused.rows * fused.n; ++i) {
      const std::int64_t row = i / fused.n, out = i % fused.n;
      Sum sum = product(fused, from, row, out);
      if (fused.swiglu) {
        const Sum gate = product(fused, from, row, fused.n + out);
        const double silu = gate.value / (1 + std::exp(-gate.value));
        sum.error = std::abs(silu) * sum.error + 1.1 * std::abs(sum.value) * gate.error;
        sum.value *= silu;
        sum.error += std::abs(sum.value) * 0x1p-20;
      }
      if (fused.accumulate) {
        sum.value += before[i];
        sum.error += std::abs(sum.value) * 0x1p-23;
      }
      const bool rounded = fused.y_is_bf16 && out < fused.n - fused.rest;
      if (rounded) sum.error += std::abs(sum.value) * 0x1p-8;
      truth.push_back(sum.value);
      bound.push_back(sum.error);
    }
  }
};

// Rows of a and behind each of them that of b.
inline std::vector<float> side_by_side(const std::vector<float>& a, const std::vector<float>& b,
                                       std::int64_t rows) {
  const std::int64_t n = std::ssize(a) / rows, m = std::ssize(b) / rows;
  std::vector<float> out;
  for (std::int64_t row = 0; row < rows; ++row) {
    out.insert(out.end(), a.begin() + row * n, a.begin() + (row + 1) * n);
    out.insert(out.end(), b.begin() + row * m, b.begin() + (row + 1) * m);
  }
  return out;
}

inline void expect_fused(const std::vector<float>& got, const FusedData& data,
                         const FusedCase& fused) {
  ASSERT_EQ(got.size(), data.truth.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], data.truth[i], data.bound[i]) << fused.name() << " at " << i;
  }
}

}  // namespace mamba3::testing
