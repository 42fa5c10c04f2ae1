// What the tests of mamba3_scan_backward expect: the double oracle's gradients, by the tolerance
// rule.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/tolerance.h"
#include "scan_backward_case.h"

namespace mamba3::testing {

struct Gradients {
  std::vector<BackwardResult> sequences;
  ParamGradients params;
};

inline Gradients gradients_of(const BackwardCase& data, const BackwardOptions& options = {}) {
  Gradients out{{}, ParamGradients(data.dims)};
  BackwardRunner runner(data, options);
  out.sequences = runner.run(out.params);
  EXPECT_TRUE(runner.clean());
  return out;
}

// in_proj's rows of a gradient by the oracle, in double.
template <class T>
std::vector<double> rows_of(const Mamba3RefInputs<T>& in) {
  std::vector<double> out;
  for (std::int64_t t = 0; t < in.tokens; ++t) {
    for (const auto* part : {&in.z, &in.x, &in.in_b, &in.out_c, &in.dt_raw, &in.decay_raw,
                             &in.trap_raw, &in.angle_raw}) {
      const std::int64_t width = std::ssize(*part) / in.tokens;
      out.insert(out.end(), part->begin() + t * width, part->begin() + (t + 1) * width);
    }
  }
  return out;
}

inline std::vector<std::pair<const char*, std::int64_t>> column_widths(const Mamba3Dims& d) {
  const std::int64_t inner = d.heads * d.head_dim;
  const std::int64_t shared = d.rank * d.groups * d.state;
  return {{"z", inner},    {"x", inner},   {"B", shared},     {"C", shared},
          {"dt", d.heads}, {"A", d.heads}, {"trap", d.heads}, {"angle", d.angle_columns()}};
}

template <class T>
std::vector<double> columns_of(const std::vector<T>& rows, std::int64_t stride, std::int64_t begin,
                               std::int64_t width) {
  std::vector<double> out;
  for (auto row = rows.begin(); row != rows.end(); row += stride) {
    out.insert(out.end(), row + begin, row + begin + width);
  }
  return out;
}

template <class G, class N>
void expect_close(const std::string& name, const std::vector<G>& got, const std::vector<N>& naive,
                  const std::vector<double>& truth, double rounding) {
  const Comparison c = compare(std::span<const G>(got), std::span<const N>(naive),
                               std::span<const double>(truth), rounding);
  EXPECT_TRUE(c.ok) << name << ": error " << c.error << ", naive " << c.naive_error << ", bound "
                    << c.bound;
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

// What the oracle makes of each sequence.
struct Expected {
  std::vector<Mamba3RefGradients<double>> truth;
  std::vector<Mamba3RefGradients<float>> naive;

  double rounding = kGradientRounding;

  // With `bf16_products` what a plain run that rounds factors of products makes of it.
  explicit Expected(const BackwardCase& data, bool bf16_products = false) {
    if (bf16_products) rounding = kBf16GradientRounding;
    for (std::size_t i = 0; i < data.inputs.size(); ++i) {
      truth.push_back(mamba3_scan_backward_ref(widen(data.inputs[i]), widen(data.starts[i]),
                                               widen(data.grad_y[i]), widen(data.grad_states[i])));
      Mamba3RefInputs<float> inputs = data.inputs[i];
      inputs.bf16_products = bf16_products;
      naive.push_back(
          mamba3_scan_backward_ref(inputs, data.starts[i], data.grad_y[i], data.grad_states[i]));
    }
  }
};

// Of all sequences together, as long as one alone may be a number or two.
inline void expect_right(const std::vector<BackwardResult>& got, const Expected& expected) {
  const auto widths = column_widths(expected.truth[0].inputs.dims);
  std::int64_t stride = 0;
  for (const auto& [name, width] : widths) stride += width;
  std::vector<float> rows;
  std::vector<double> naive_rows, true_rows;
  for (std::size_t i = 0; i < got.size(); ++i) {
    append(rows, got[i].columns);
    append(naive_rows, rows_of(expected.naive[i].inputs));
    append(true_rows, rows_of(expected.truth[i].inputs));
  }
  std::int64_t begin = 0;
  for (const auto& [name, width] : widths) {
    expect_close(name, columns_of(rows, stride, begin, width),
                 columns_of(naive_rows, stride, begin, width),
                 columns_of(true_rows, stride, begin, width), expected.rounding);
    begin += width;
  }
  const auto check_state = [&](const char* name, auto part, auto wide_part) {
    std::vector<float> all, naive;
    std::vector<double> truth;
    for (std::size_t i = 0; i < got.size(); ++i) {
      append(all, got[i].state.*part);
      append(naive, expected.naive[i].state.*part);
      append(truth, expected.truth[i].state.*wide_part);
    }
    expect_close(name, all, naive, truth, expected.rounding);
  };
  using F = Mamba3RefState<float>;
  using D = Mamba3RefState<double>;
  check_state("state angle", &F::angle, &D::angle);
  check_state("state ssm", &F::ssm, &D::ssm);
  check_state("state k", &F::k, &D::k);
  check_state("state v", &F::v, &D::v);
}

inline void expect_right(ParamGradients got, const Expected& expected) {
  const auto check = [&](const char* name, const std::vector<float>& values, auto part,
                         auto wide_part) {
    std::vector<float> naive(values.size());
    std::vector<double> truth(values.size());
    for (std::size_t s = 0; s < expected.truth.size(); ++s) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        naive[i] += (expected.naive[s].inputs.*part)[i];
        truth[i] += (expected.truth[s].inputs.*wide_part)[i];
      }
    }
    expect_close(name, values, naive, truth, expected.rounding);
  };
  using F = Mamba3RefInputs<float>;
  using D = Mamba3RefInputs<double>;
  check("dt_bias", got.dt_bias, &F::dt_bias, &D::dt_bias);
  check("D", got.skip, &F::skip, &D::skip);
  check("B_bias", got.in_b_bias, &F::in_b_bias, &D::in_b_bias);
  check("C_bias", got.out_c_bias, &F::out_c_bias, &D::out_c_bias);
  check("B_norm", got.in_b_norm, &F::in_b_norm, &D::in_b_norm);
  check("C_norm", got.out_c_norm, &F::out_c_norm, &D::out_c_norm);
  check("mimo_x", got.mimo_x, &F::mimo_x, &D::mimo_x);
  check("mimo_z", got.mimo_z, &F::mimo_z, &D::mimo_z);
  check("mimo_o", got.mimo_o, &F::mimo_o, &D::mimo_o);
  check("norm", got.out_norm, &F::out_norm, &D::out_norm);
}

}  // namespace mamba3::testing
