#include "ops/mamba3_scan/mamba3_scan_ref.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "ops/mamba3_scan/mamba3_ref_math.h"

namespace mamba3 {
namespace {

template <class T>
class RefScan {
 public:
  RefScan(const Mamba3RefInputs<T>& inputs, Mamba3RefState<T>& state)
      : in_(inputs), d_(inputs.dims), state_(state) {}

  void token_head(std::int64_t t, std::int64_t h, T* y) {
    const std::int64_t at = t * d_.heads + h;
    const T dt = ref_softplus(in_.dt_raw[at] + in_.dt_bias[h]);
    const T a = -std::max(ref_decay_activation(in_.decay_raw[at], d_.a_activation),
                          static_cast<T>(in_.a_floor));
    const T alpha = std::exp(a * dt);
    const T gamma = ref_sigmoid(in_.trap_raw[at]) * dt;
    const T beta = ref_sigmoid(-in_.trap_raw[at]) * dt * alpha;
    advance_angles(t, h, dt);

    const T* x = &in_.x[at * d_.head_dim];
    T* ssm = &state_.ssm[h * d_.head_dim * d_.state];
    for (std::int64_t i = 0; i < d_.head_dim * d_.state; ++i) ssm[i] *= alpha;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      add_outer(ssm, h, r, beta, &state_.v[h * d_.head_dim], k_of(r, h));
    }
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const std::vector<T> k = prepared(in_.in_b, in_.in_b_norm, in_.in_b_bias, t, h, r);
      std::copy(k.begin(), k.end(), k_of(r, h));
      add_outer(ssm, h, r, gamma, x, k_of(r, h));
    }
    std::copy(x, x + d_.head_dim, &state_.v[h * d_.head_dim]);
    read_out(t, h, ssm, y);
  }

 private:
  T* k_of(std::int64_t r, std::int64_t h) { return &state_.k[(r * d_.heads + h) * d_.state]; }

  void advance_angles(std::int64_t t, std::int64_t h, T dt) {
    constexpr double kPi = 3.14159265358979323846;
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      state_.angle[h * d_.angles + i] +=
          d_.fixed_steps ? ref_fixed_step<T>(i, d_)
                         : static_cast<T>(kPi) * std::tanh(in_.angle_raw[t * d_.angles + i]) * dt;
    }
  }

  // Normalised, biased and rotated: K from in_b, Q from out_c.
  std::vector<T> prepared(const std::vector<T>& raw, const std::vector<T>& norm,
                          const std::vector<T>& bias, std::int64_t t, std::int64_t h,
                          std::int64_t r) const {
    const std::int64_t group = h / (d_.heads / d_.groups);
    const std::int64_t row = (t * d_.rank + r) * d_.groups + group;
    std::vector<T> v = ref_rms_norm(&raw[row * d_.state], d_.state, norm.data());
    for (std::int64_t i = 0; i < d_.state; ++i) v[i] += bias[(h * d_.rank + r) * d_.state + i];
    ref_rotate(v, state_.angle.data() + h * d_.angles, d_);
    return v;
  }

  // What a factor of a product is taken as.
  T factor(T v) const {
    return in_.bf16_products ? static_cast<T>(to_float(to_bf16(static_cast<float>(v)))) : v;
  }

  T x_of(const T* x, std::int64_t h, std::int64_t r, std::int64_t p) const {
    return d_.mimo ? x[p] * in_.mimo_x[(h * d_.rank + r) * d_.head_dim + p] : x[p];
  }

  void add_outer(T* ssm, std::int64_t h, std::int64_t r, T weight, const T* x, const T* k) const {
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      const T scaled = weight * factor(x_of(x, h, r, p));
      for (std::int64_t i = 0; i < d_.state; ++i) ssm[p * d_.state + i] += scaled * factor(k[i]);
    }
  }

  void read_out(std::int64_t t, std::int64_t h, const T* ssm, T* y) const {
    const std::int64_t row = (t * d_.heads + h) * d_.head_dim;
    for (std::int64_t p = 0; p < d_.head_dim; ++p) y[p] = 0;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const std::vector<T> q = prepared(in_.out_c, in_.out_c_norm, in_.out_c_bias, t, h, r);
      std::vector<T> o(static_cast<std::size_t>(d_.head_dim));
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        T sum = 0;
        for (std::int64_t i = 0; i < d_.state; ++i)
          sum += factor(ssm[p * d_.state + i]) * factor(q[i]);
        o[p] = sum + in_.skip[h] * x_of(&in_.x[row], h, r, p);
      }
      if (d_.out_norm) {
        o = ref_rms_norm(o.data(), d_.head_dim, in_.out_norm.data() + h * d_.head_dim);
      }
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const std::int64_t at = (h * d_.rank + r) * d_.head_dim + p;
        const T z = in_.z[row + p];
        y[p] += d_.mimo ? in_.mimo_o[at] * o[p] * ref_silu(z * in_.mimo_z[at]) : o[p] * ref_silu(z);
      }
    }
  }

  const Mamba3RefInputs<T>& in_;
  const Mamba3Dims& d_;
  Mamba3RefState<T>& state_;
};

template <class T>
void expect_size(const char* name, const std::vector<T>& v, std::int64_t expected) {
  check_input(static_cast<std::int64_t>(v.size()) == expected, name, " has ", v.size(),
              " elements; expected ", expected);
}

}  // namespace

template <class T>
void check_ref(const Mamba3RefInputs<T>& in, const Mamba3RefState<T>& state) {
  const Mamba3Dims& d = in.dims;
  check_dims(d);
  check_input(in.tokens >= 0, "tokens is ", in.tokens, "; expected 0 or more");
  const std::int64_t inner = d.heads * d.head_dim;
  const std::int64_t ranked = d.mimo ? d.rank * inner : 0;
  for (const auto* v : {&in.x, &in.z}) expect_size("x or z", *v, in.tokens * inner);
  for (const auto* v : {&in.in_b, &in.out_c}) {
    expect_size("B or C", *v, in.tokens * d.rank * d.groups * d.state);
  }
  for (const auto* v : {&in.dt_raw, &in.decay_raw, &in.trap_raw}) {
    expect_size("dt, A or trap", *v, in.tokens * d.heads);
  }
  expect_size("angle", in.angle_raw, in.tokens * d.angle_columns());
  for (const auto* v : {&in.dt_bias, &in.skip}) expect_size("dt_bias or D", *v, d.heads);
  for (const auto* v : {&in.in_b_bias, &in.out_c_bias}) {
    expect_size("B_bias or C_bias", *v, d.heads * d.rank * d.state);
  }
  for (const auto* v : {&in.in_b_norm, &in.out_c_norm})
    expect_size("B_norm or C_norm", *v, d.state);
  for (const auto* v : {&in.mimo_x, &in.mimo_z, &in.mimo_o}) expect_size("mimo_x/z/o", *v, ranked);
  expect_size("norm", in.out_norm, d.out_norm ? inner : 0);
  expect_size("state angle", state.angle, d.heads * d.angles);
  expect_size("state ssm", state.ssm, inner * d.state);
  expect_size("state k", state.k, d.rank * d.heads * d.state);
  expect_size("state v", state.v, inner);
}

template <class T>
Mamba3RefState<T> Mamba3RefState<T>::zeros(const Mamba3Dims& dims) {
  Mamba3RefState state;
  state.angle.assign(static_cast<std::size_t>(dims.heads * dims.angles), T(0));
  state.ssm.assign(static_cast<std::size_t>(dims.heads * dims.head_dim * dims.state), T(0));
  state.k.assign(static_cast<std::size_t>(dims.rank * dims.heads * dims.state), T(0));
  state.v.assign(static_cast<std::size_t>(dims.heads * dims.head_dim), T(0));
  return state;
}

template <class T>
std::vector<T> mamba3_scan_ref(const Mamba3RefInputs<T>& inputs, Mamba3RefState<T>& state) {
  check_ref(inputs, state);
  const Mamba3Dims& d = inputs.dims;
  std::vector<T> y(static_cast<std::size_t>(inputs.tokens * d.heads * d.head_dim));
  RefScan<T> scan(inputs, state);
  for (std::int64_t t = 0; t < inputs.tokens; ++t) {
    for (std::int64_t h = 0; h < d.heads; ++h) {
      scan.token_head(t, h, y.data() + (t * d.heads + h) * d.head_dim);
    }
  }
  return y;
}

template void check_ref(const Mamba3RefInputs<double>&, const Mamba3RefState<double>&);
template void check_ref(const Mamba3RefInputs<float>&, const Mamba3RefState<float>&);
template struct Mamba3RefState<double>;
template struct Mamba3RefState<float>;
template std::vector<double> mamba3_scan_ref(const Mamba3RefInputs<double>&,
                                             Mamba3RefState<double>&);
template std::vector<float> mamba3_scan_ref(const Mamba3RefInputs<float>&, Mamba3RefState<float>&);

}  // namespace mamba3
