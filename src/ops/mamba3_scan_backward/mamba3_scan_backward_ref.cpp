#include "ops/mamba3_scan_backward/mamba3_scan_backward_ref.h"

#include <cmath>

#include "core/check.h"
#include "ops/mamba3_scan/mamba3_ref_math.h"

namespace mamba3 {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kEps = 1e-5;

template <class T>
T dot(const T* a, const T* b, std::int64_t count) {
  T sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
void add_scaled(T* to, T factor, const T* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) to[i] += factor * from[i];
}

// Slope of act(v); 1 at 0, where both sides meet (SEMANTICS.md, section 1).
template <class T>
T decay_activation_slope(T v, AActivation activation) {
  if (activation == AActivation::kSoftplus) return ref_sigmoid(v);
  return v >= 0 ? T(1) : T(1) / ((T(1) - v) * (T(1) - v));
}

template <class T>
T silu_slope(T v) {
  const T s = ref_sigmoid(v);
  return s * (T(1) + v * ref_sigmoid(-v));
}

// y = v / rms(v) * weight: adds to the gradients of v and of the weight.
template <class T>
void rms_norm_backward(const T* v, const T* weight, const T* grad_y, std::int64_t count, T* grad_v,
                       T* grad_weight) {
  const T rms = std::sqrt(dot(v, v, count) / static_cast<T>(count) + static_cast<T>(kEps));
  T along = 0;  // how much of the gradient lies along v / rms
  for (std::int64_t i = 0; i < count; ++i) along += grad_y[i] * weight[i] * v[i] / rms;
  along /= static_cast<T>(count);
  for (std::int64_t i = 0; i < count; ++i) {
    grad_v[i] += (grad_y[i] * weight[i] - along * v[i] / rms) / rms;
    grad_weight[i] += grad_y[i] * v[i] / rms;
  }
}

// The scalars of one token of one head.
template <class T>
struct Numbers {
  T dt, act, a, alpha, lam, rest, gamma, beta;  // rest: 1 - lam
};

template <class T>
class RefBackward {
 public:
  RefBackward(const Mamba3RefInputs<T>& in, const Mamba3RefState<T>& state,
              const Mamba3RefState<T>& grad_state)
      : in_(in), d_(in.dims), first_(state) {
    out_.inputs = in;
    for (auto* v : vectors(out_.inputs)) v->assign(v->size(), T(0));
    out_.state = grad_state;
    replay();
  }

  void token_head(std::int64_t t, std::int64_t h, const T* grad_y) {
    const std::int64_t at = t * d_.heads + h;
    const Numbers<T> n = numbers(t, h);
    T* grad_h = &out_.state.ssm[h * matrix()];
    grad_x_.assign(static_cast<std::size_t>(d_.head_dim), T(0));
    add_scaled(grad_x_.data(), T(1), &out_.state.v[h * d_.head_dim], d_.head_dim);
    read_out(t, h, grad_y, grad_h);
    const T grad_gamma = own_token(t, h, n.gamma, grad_h);
    const T grad_beta = token_before(t, h, n.beta, grad_h);
    const T grad_alpha = dot(grad_h, ssm(t, h), matrix());
    for (std::int64_t i = 0; i < matrix(); ++i) grad_h[i] *= n.alpha;
    add_scaled(&out_.inputs.x[at * d_.head_dim], T(1), grad_x_.data(), d_.head_dim);
    scalars(t, h, n, grad_gamma, grad_beta, grad_alpha);
  }

  Mamba3RefGradients<T> take() { return std::move(out_); }

 private:
  using Vector = std::vector<T>;

  static std::vector<Vector*> vectors(Mamba3RefInputs<T>& in) {
    return {&in.x,         &in.z,          &in.in_b,    &in.out_c,  &in.dt_raw,    &in.decay_raw,
            &in.trap_raw,  &in.angle_raw,  &in.dt_bias, &in.skip,   &in.in_b_bias, &in.out_c_bias,
            &in.in_b_norm, &in.out_c_norm, &in.mimo_x,  &in.mimo_z, &in.mimo_o,    &in.out_norm};
  }

  std::int64_t matrix() const { return d_.head_dim * d_.state; }
  std::int64_t ranked(std::int64_t h, std::int64_t r, std::int64_t width) const {
    return (h * d_.rank + r) * width;
  }
  // The state before token t.
  const T* ssm(std::int64_t t, std::int64_t h) const {
    return &states_[static_cast<std::size_t>(t)].ssm[h * matrix()];
  }
  const T* angles(std::int64_t t, std::int64_t h) const {
    return states_[static_cast<std::size_t>(t)].angle.data() + h * d_.angles;
  }
  const T* k(std::int64_t t, std::int64_t h, std::int64_t r) const {
    return &states_[static_cast<std::size_t>(t)].k[(r * d_.heads + h) * d_.state];
  }
  T* grad_k(std::int64_t h, std::int64_t r) { return &out_.state.k[(r * d_.heads + h) * d_.state]; }

  // What a factor of a product is taken as.
  T factor(T v) const {
    return in_.bf16_products ? static_cast<T>(to_float(to_bf16(static_cast<float>(v)))) : v;
  }
  // Over the columns of a state.
  T factor_dot(const T* a, const T* b) const {
    T sum = 0;
    for (std::int64_t i = 0; i < d_.state; ++i) sum += factor(a[i]) * factor(b[i]);
    return sum;
  }
  void add_factors(T* to, T weight, const T* from) const {
    for (std::int64_t i = 0; i < d_.state; ++i) to[i] += weight * factor(from[i]);
  }

  // All states from the first to the last, by the forward oracle one token at a time.
  void replay() {
    Mamba3RefInputs<T> one = in_;
    one.tokens = 1;
    states_.push_back(first_);
    for (std::int64_t t = 0; t < in_.tokens; ++t) {
      const auto cut = [&](const Vector& all, Vector& part) {
        const auto width = static_cast<std::int64_t>(all.size()) / in_.tokens;
        part.assign(all.begin() + t * width, all.begin() + (t + 1) * width);
      };
      cut(in_.x, one.x);
      cut(in_.z, one.z);
      cut(in_.in_b, one.in_b);
      cut(in_.out_c, one.out_c);
      cut(in_.dt_raw, one.dt_raw);
      cut(in_.decay_raw, one.decay_raw);
      cut(in_.trap_raw, one.trap_raw);
      cut(in_.angle_raw, one.angle_raw);
      states_.push_back(states_.back());
      mamba3_scan_ref(one, states_.back());
    }
  }

  Numbers<T> numbers(std::int64_t t, std::int64_t h) const {
    const std::int64_t at = t * d_.heads + h;
    Numbers<T> n;
    n.dt = ref_softplus(in_.dt_raw[at] + in_.dt_bias[h]);
    n.act = ref_decay_activation(in_.decay_raw[at], d_.a_activation);
    n.a = -std::max(n.act, static_cast<T>(in_.a_floor));
    n.alpha = std::exp(n.a * n.dt);
    n.lam = ref_sigmoid(in_.trap_raw[at]);
    n.rest = ref_sigmoid(-in_.trap_raw[at]);
    n.gamma = n.lam * n.dt;
    n.beta = n.rest * n.dt * n.alpha;
    return n;
  }

  // x times its rank's weights.
  Vector spread(const T* x, std::int64_t h, std::int64_t r) const {
    Vector out(x, x + d_.head_dim);
    if (!d_.mimo) return out;
    for (std::int64_t p = 0; p < d_.head_dim; ++p)
      out[p] *= in_.mimo_x[ranked(h, r, d_.head_dim) + p];
    return out;
  }
  // The gradient of spread(): adds to that of x and of the weights.
  void spread_backward(const T* x, const Vector& grad, std::int64_t h, std::int64_t r, T* grad_x) {
    const std::int64_t weights = ranked(h, r, d_.head_dim);
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      grad_x[p] += d_.mimo ? grad[p] * in_.mimo_x[weights + p] : grad[p];
      if (d_.mimo) out_.inputs.mimo_x[weights + p] += grad[p] * x[p];
    }
  }

  // Normalised and biased, before it is turned.
  std::int64_t raw_row(std::int64_t t, std::int64_t h, std::int64_t r) const {
    return ((t * d_.rank + r) * d_.groups + h / (d_.heads / d_.groups)) * d_.state;
  }
  Vector turned(const Vector& raw, const Vector& norm, const Vector& bias, std::int64_t t,
                std::int64_t h, std::int64_t r) const {
    Vector v = ref_rms_norm(&raw[raw_row(t, h, r)], d_.state, norm.data());
    for (std::int64_t i = 0; i < d_.state; ++i) v[i] += bias[ranked(h, r, d_.state) + i];
    ref_rotate(v, angles(t + 1, h), d_);
    return v;
  }
  // From the gradient of a turned row to those of the phases, the bias, the norm's weight and the
  // row as it came.
  void turned_backward(const Vector& raw, const Vector& norm, const Vector& row, Vector grad,
                       std::int64_t t, std::int64_t h, std::int64_t r, Vector& grad_raw,
                       Vector& grad_norm, Vector& grad_bias) {
    const T* angle = angles(t + 1, h);
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      const std::int64_t a = d_.mimo ? i : 2 * i, b = d_.mimo ? i + d_.state / 2 : 2 * i + 1;
      out_.state.angle[h * d_.angles + i] += grad[b] * row[a] - grad[a] * row[b];
      const T c = std::cos(angle[i]), s = std::sin(angle[i]), grad_a = grad[a], grad_b = grad[b];
      grad[a] = grad_a * c + grad_b * s;
      grad[b] = grad_b * c - grad_a * s;
    }
    add_scaled(&grad_bias[ranked(h, r, d_.state)], T(1), grad.data(), d_.state);
    const std::int64_t at = raw_row(t, h, r);
    rms_norm_backward(&raw[at], norm.data(), grad.data(), d_.state, &grad_raw[at],
                      grad_norm.data());
  }

  // y = sum over ranks of mimo_o * norm(h Q + D X) * silu(z * mimo_z)
  void read_out(std::int64_t t, std::int64_t h, const T* grad_y, T* grad_h) {
    const std::int64_t width = d_.head_dim, row = (t * d_.heads + h) * width;
    const T* after = ssm(t + 1, h);
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const Vector q = turned(in_.out_c, in_.out_c_norm, in_.out_c_bias, t, h, r);
      const Vector x = spread(&in_.x[row], h, r);
      Vector o(x.size());
      for (std::int64_t p = 0; p < width; ++p) {
        o[p] = factor_dot(after + p * d_.state, q.data()) + in_.skip[h] * x[p];
      }
      const Vector grad_o = gate_backward(row, h, r, o, grad_y);
      out_.inputs.skip[h] += dot(grad_o.data(), x.data(), width);
      Vector grad_spread(x.size()), grad_q(q.size());
      add_scaled(grad_spread.data(), in_.skip[h], grad_o.data(), width);
      spread_backward(&in_.x[row], grad_spread, h, r, grad_x_.data());
      for (std::int64_t p = 0; p < width; ++p) {
        add_factors(grad_q.data(), factor(grad_o[p]), after + p * d_.state);
        add_factors(grad_h + p * d_.state, factor(grad_o[p]), q.data());
      }
      turned_backward(in_.out_c, in_.out_c_norm, q, grad_q, t, h, r, out_.inputs.out_c,
                      out_.inputs.out_c_norm, out_.inputs.out_c_bias);
    }
  }

  // Of rank r's o, which is [p], through the out-norm and the gate.
  Vector gate_backward(std::int64_t row, std::int64_t h, std::int64_t r, const Vector& o,
                       const T* grad_y) {
    const std::int64_t width = d_.head_dim, weights = ranked(h, r, width);
    const T* norm = d_.out_norm ? in_.out_norm.data() + h * width : nullptr;
    const Vector normed = norm ? ref_rms_norm(o.data(), width, norm) : o;
    Vector grad_normed(o.size());
    for (std::int64_t p = 0; p < width; ++p) {
      const T z = in_.z[row + p], z_weight = d_.mimo ? in_.mimo_z[weights + p] : T(1);
      const T o_weight = d_.mimo ? in_.mimo_o[weights + p] : T(1);
      const T gate = ref_silu(z * z_weight), slope = silu_slope(z * z_weight);
      grad_normed[p] = grad_y[p] * o_weight * gate;
      const T grad_gated = grad_y[p] * o_weight * normed[p] * slope;
      out_.inputs.z[row + p] += grad_gated * z_weight;
      if (!d_.mimo) continue;
      out_.inputs.mimo_z[weights + p] += grad_gated * z;
      out_.inputs.mimo_o[weights + p] += grad_y[p] * normed[p] * gate;
    }
    if (!norm) return grad_normed;
    Vector grad_o(o.size());
    rms_norm_backward(o.data(), norm, grad_normed.data(), width, grad_o.data(),
                      out_.inputs.out_norm.data() + h * width);
    return grad_o;
  }

  // h += gamma * X K^T of this token. Returns the gradient of gamma. What the token behind has left
  // in the gradient of K belongs to this token's K too.
  T own_token(std::int64_t t, std::int64_t h, T gamma, const T* grad_h) {
    const T* x = &in_.x[(t * d_.heads + h) * d_.head_dim];
    T grad_gamma = 0;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      Vector grad_row(grad_k(h, r), grad_k(h, r) + d_.state);
      const Vector row(k(t + 1, h, r), k(t + 1, h, r) + d_.state);
      grad_gamma +=
          outer_backward(x, row.data(), h, r, gamma, grad_h, grad_x_.data(), grad_row.data());
      turned_backward(in_.in_b, in_.in_b_norm, row, grad_row, t, h, r, out_.inputs.in_b,
                      out_.inputs.in_b_norm, out_.inputs.in_b_bias);
    }
    return grad_gamma;
  }

  // h += beta * X K^T of the token before. Returns the gradient of beta.
  T token_before(std::int64_t t, std::int64_t h, T beta, const T* grad_h) {
    const T* x = &states_[static_cast<std::size_t>(t)].v[h * d_.head_dim];
    T* grad_v = &out_.state.v[h * d_.head_dim];
    std::fill_n(grad_v, d_.head_dim, T(0));
    T grad_beta = 0;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      std::fill_n(grad_k(h, r), d_.state, T(0));
      grad_beta += outer_backward(x, k(t, h, r), h, r, beta, grad_h, grad_v, grad_k(h, r));
    }
    return grad_beta;
  }

  // Of weight * X_r K_r^T, where X_r is spread(x).
  T outer_backward(const T* x, const T* key, std::int64_t h, std::int64_t r, T weight,
                   const T* grad_h, T* grad_x, T* grad_key) {
    const Vector scaled = spread(x, h, r);
    Vector grad_scaled(scaled.size());
    T grad_weight = 0;
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      const T along = factor_dot(grad_h + p * d_.state, key);
      grad_weight += factor(scaled[p]) * along;
      grad_scaled[p] = weight * along;
      add_factors(grad_key, weight * factor(scaled[p]), grad_h + p * d_.state);
    }
    spread_backward(x, grad_scaled, h, r, grad_x);
    return grad_weight;
  }

  void scalars(std::int64_t t, std::int64_t h, const Numbers<T>& n, T grad_gamma, T grad_beta,
               T grad_alpha) {
    const std::int64_t at = t * d_.heads + h;
    const T grad_exponent = (grad_alpha + grad_beta * n.rest * n.dt) * n.alpha;  // of a * dt
    T grad_dt = grad_gamma * n.lam + grad_beta * n.rest * n.alpha + grad_exponent * n.a;
    for (std::int64_t i = 0; i < d_.angle_columns(); ++i) {
      const T tanh = std::tanh(in_.angle_raw[t * d_.angles + i]);
      const T grad_phase = out_.state.angle[h * d_.angles + i] * static_cast<T>(kPi);
      grad_dt += grad_phase * tanh;
      out_.inputs.angle_raw[t * d_.angles + i] += grad_phase * n.dt * (T(1) - tanh * tanh);
    }
    const T grad_raw = grad_dt * ref_sigmoid(in_.dt_raw[at] + in_.dt_bias[h]);
    out_.inputs.dt_raw[at] += grad_raw;
    out_.inputs.dt_bias[h] += grad_raw;
    const T grad_lam = grad_gamma * n.dt - grad_beta * n.dt * n.alpha;
    out_.inputs.trap_raw[at] += grad_lam * n.lam * n.rest;
    if (n.act > static_cast<T>(in_.a_floor)) {
      out_.inputs.decay_raw[at] -=
          grad_exponent * n.dt * decay_activation_slope(in_.decay_raw[at], d_.a_activation);
    }
  }

  const Mamba3RefInputs<T>& in_;
  const Mamba3Dims& d_;
  const Mamba3RefState<T>& first_;
  std::vector<Mamba3RefState<T>> states_;  // [t + 1]: before each token, and after the last
  Mamba3RefGradients<T> out_;              // its state: with respect to the state after the token
  Vector grad_x_;                          // of the token in hand
};

}  // namespace

template <class T>
Mamba3RefGradients<T> mamba3_scan_backward_ref(const Mamba3RefInputs<T>& inputs,
                                               const Mamba3RefState<T>& state,
                                               const std::vector<T>& grad_y,
                                               const Mamba3RefState<T>& grad_state) {
  check_ref(inputs, state);
  check_ref(inputs, grad_state);
  const Mamba3Dims& d = inputs.dims;
  check_input(grad_y.size() == inputs.x.size(), "the gradient of y has ", grad_y.size(),
              " elements; expected ", inputs.x.size());
  RefBackward<T> backward(inputs, state, grad_state);
  for (std::int64_t t = inputs.tokens - 1; t >= 0; --t) {
    for (std::int64_t h = 0; h < d.heads; ++h) {
      backward.token_head(t, h, grad_y.data() + (t * d.heads + h) * d.head_dim);
    }
  }
  return backward.take();
}

template Mamba3RefGradients<double> mamba3_scan_backward_ref(const Mamba3RefInputs<double>&,
                                                             const Mamba3RefState<double>&,
                                                             const std::vector<double>&,
                                                             const Mamba3RefState<double>&);
template Mamba3RefGradients<float> mamba3_scan_backward_ref(const Mamba3RefInputs<float>&,
                                                            const Mamba3RefState<float>&,
                                                            const std::vector<float>&,
                                                            const Mamba3RefState<float>&);

}  // namespace mamba3
