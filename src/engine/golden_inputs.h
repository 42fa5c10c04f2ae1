// A golden's tokens and parameters as the oracles take them.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "engine/golden_run.h"

namespace mamba3 {

template <class T>
std::vector<T> cast(std::span<const double> values) {
  return std::vector<T>(values.begin(), values.end());
}

template <class T>
T rounded(T value, bool to_16_bits) {
  return to_16_bits ? static_cast<T>(to_float(to_bf16(static_cast<float>(value)))) : value;
}

// x [rows, k] times w [n, k] transposed.
template <class T>
std::vector<T> multiply(const std::vector<T>& x, const std::vector<T>& w, std::int64_t k,
                        bool bf16) {
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / k;
  const std::int64_t n = static_cast<std::int64_t>(w.size()) / k;
  std::vector<T> y(static_cast<std::size_t>(rows * n));
  for (std::int64_t t = 0; t < rows; ++t) {
    for (std::int64_t j = 0; j < n; ++j) {
      T sum = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        sum += rounded(x[t * k + i], bf16) * rounded(w[j * k + i], bf16);
      }
      y[t * n + j] = sum;
    }
  }
  return y;
}

// y = x w^T: adds to the gradient of w [n, k] and returns that of x [rows, k].
template <class T>
std::vector<T> linear_backward(const std::vector<T>& x, const std::vector<T>& w,
                               const std::vector<T>& grad_y, std::int64_t k,
                               std::vector<double>& grad_w) {
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / k;
  const std::int64_t n = static_cast<std::int64_t>(w.size()) / k;
  std::vector<T> grad_x(x.size());
  grad_w.resize(w.size());
  for (std::int64_t j = 0; j < n; ++j) {
    for (std::int64_t i = 0; i < k; ++i) {
      T sum = 0;
      for (std::int64_t t = 0; t < rows; ++t) {
        const T grad = grad_y[t * n + j];
        sum += grad * x[t * k + i];
        grad_x[t * k + i] += grad * w[j * k + i];
      }
      grad_w[j * k + i] += sum;
    }
  }
  return grad_x;
}

// Rows of `range` in a tensor of `width` columns.
inline std::span<const double> rows_of(const std::vector<double>& values, GoldenRange range,
                                       std::int64_t width) {
  return std::span(values).subspan(static_cast<std::size_t>(range.begin * width),
                                   static_cast<std::size_t>((range.end - range.begin) * width));
}

template <class T>
Mamba3RefInputs<T> layer_of(const Golden& golden) {
  Mamba3RefInputs<T> in;
  in.dims = golden.dims;
  in.a_floor = golden.a_floor;
  const auto param = [&](const char* name) { return cast<T>(golden.at(name)); };
  in.dt_bias = param("param.dt_bias");
  in.skip = param("param.D");
  in.in_b_bias = param("param.B_bias");
  in.out_c_bias = param("param.C_bias");
  in.in_b_norm = param("param.B_norm.weight");
  in.out_c_norm = param("param.C_norm.weight");
  in.mimo_x = param("param.mimo_x");
  in.mimo_z = param("param.mimo_z");
  in.mimo_o = param("param.mimo_o");
  in.out_norm = param("param.norm.weight");
  return in;
}

template <class T>
void take_columns(const Golden& golden, GoldenRange range, Mamba3RefInputs<T>& in) {
  const auto take = [&](const char* name, std::int64_t width) {
    return cast<T>(rows_of(golden.at(name), range, width));
  };
  in.x = take("in.x", golden.inner());
  in.z = take("in.z", golden.inner());
  in.in_b = take("in.B", golden.shared());
  in.out_c = take("in.C", golden.shared());
  in.dt_raw = take("in.dd_dt", golden.dims.heads);
  in.decay_raw = take("in.dd_A", golden.dims.heads);
  in.trap_raw = take("in.trap", golden.dims.heads);
  in.angle_raw = take("in.angle", golden.dims.angles);
}

template <class T>
void project_columns(const Golden& golden, GoldenRange range, bool bf16, Mamba3RefInputs<T>& in) {
  const std::vector<T> projected =
      multiply(cast<T>(rows_of(golden.at("in.u"), range, golden.width)),
               cast<T>(golden.at("param.in_proj.weight")), golden.width, bf16);
  const std::int64_t all = golden.projected();
  std::int64_t at = 0;
  const auto take = [&](std::int64_t width) {
    std::vector<T> out;
    for (std::int64_t t = 0; t < in.tokens; ++t) {
      const auto from = projected.begin() + t * all + at;
      out.insert(out.end(), from, from + width);
    }
    at += width;
    return out;
  };
  in.z = take(golden.inner());
  in.x = take(golden.inner());
  in.in_b = take(golden.shared());
  in.out_c = take(golden.shared());
  in.dt_raw = take(golden.dims.heads);
  in.decay_raw = take(golden.dims.heads);
  in.trap_raw = take(golden.dims.heads);
  in.angle_raw = take(golden.dims.angles);
}

template <class T, class From>
Mamba3RefState<T> cast_state(const Mamba3RefState<From>& state) {
  const auto part = [](const std::vector<From>& v) { return std::vector<T>(v.begin(), v.end()); };
  return {part(state.angle), part(state.ssm), part(state.k), part(state.v)};
}

// Tokens of one sequence, or a part of one, with the layer's parameters.
template <class T>
void take_tokens(const Golden& golden, GoldenRange range, bool bf16_linears,
                 Mamba3RefInputs<T>& in) {
  in.tokens = range.end - range.begin;
  if (golden.mixer) {
    project_columns(golden, range, bf16_linears, in);
  } else {
    take_columns(golden, range, in);
  }
}

}  // namespace mamba3
