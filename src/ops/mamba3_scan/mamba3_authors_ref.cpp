#include "ops/mamba3_scan/mamba3_authors_ref.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "ops/mamba3_scan/mamba3_ref_math.h"

namespace mamba3 {
namespace {

using Floats = std::vector<float>;

constexpr float kTurn = 6.283185307179586476925f;
constexpr std::int64_t kChunkRows = 64;  // tokens x ranks of one chunk

float dot(const Floats& a, const Floats& b) {
  float sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// One token of one head.
struct Token {
  float dt = 0, lam = 0, adt = 0;
  float gamma = 0;               // weight of its own input where it is read at once
  float scale = 0;               // weight of its input in the state, once the next token is known
  std::vector<Floats> q, k;      // [r][n] rotated, bf16
  std::vector<Floats> k_scaled;  // [r][n]
  std::vector<Floats> x;         // [r][p]
  std::vector<Floats> own;       // [r][r] q . k of the token with itself
};

class AuthorsRun {
 public:
  AuthorsRun(Mamba3RefInputs<float> inputs, Mamba3RefState<float>& state, bool rounds)
      : in_(std::move(inputs)), d_(in_.dims), state_(state), rounds_(rounds) {
    for (Floats* column : {&in_.x, &in_.z, &in_.in_b, &in_.out_c, &in_.dt_raw, &in_.decay_raw,
                           &in_.trap_raw, &in_.angle_raw}) {
      round_to_bf16(*column);  // in_proj gives bf16
    }
    y_.resize(static_cast<std::size_t>(in_.tokens * d_.heads * d_.head_dim));
  }

  Floats prefill() {
    for (std::int64_t h = 0; h < d_.heads && in_.tokens > 0; ++h) prefill_head(h);
    return std::move(y_);
  }

  Floats steps() {
    for (std::int64_t t = 0; t < in_.tokens; ++t) {
      for (std::int64_t h = 0; h < d_.heads; ++h) step(t, h);
    }
    return std::move(y_);
  }

 private:
  float bf16(float v) const { return rounds_ ? to_float(to_bf16(v)) : v; }

  void round_to_bf16(Floats& values) const {
    for (float& v : values) v = bf16(v);
  }

  // As the tensor cores take a float: 10 bits of mantissa.
  float tf32(float v) const {
    if (!rounds_ || !std::isfinite(v)) return v;
    return std::bit_cast<float>((std::bit_cast<std::uint32_t>(v) + 0x1000u) & ~0x1fffu);
  }

  // dt, a * dt, and lam in floats.
  Token scalars(std::int64_t t, std::int64_t h) const {
    const std::int64_t at = t * d_.heads + h;
    Token token;
    token.dt = ref_softplus(in_.dt_raw[at] + in_.dt_bias[h]);
    token.adt = -token.dt * std::max(ref_decay_activation(in_.decay_raw[at], d_.a_activation),
                                     static_cast<float>(in_.a_floor));
    token.lam = ref_sigmoid(in_.trap_raw[at]);
    return token;
  }

  Floats advance_angles(std::int64_t t, std::int64_t h, float dt) {
    constexpr float kPi = kTurn / 2;
    float* angle = state_.angle.data() + h * d_.angles;  // there may be none
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      angle[i] += kPi * std::tanh(in_.angle_raw[t * d_.angles + i]) * dt;
    }
    return {angle, angle + d_.angles};
  }

  // Normalised, in bf16, and biased, `in_bf16` or in floats.
  Floats biased(const Floats& raw, const Floats& norm, const Floats& bias, std::int64_t t,
                std::int64_t h, std::int64_t r, bool in_bf16) const {
    const std::int64_t group = h / (d_.heads / d_.groups);
    const std::int64_t row = (t * d_.rank + r) * d_.groups + group;
    Floats v = ref_rms_norm(&raw[row * d_.state], d_.state, norm.data());
    round_to_bf16(v);
    for (std::int64_t i = 0; i < d_.state; ++i) {
      const float b = bias[(h * d_.rank + r) * d_.state + i];
      v[i] = in_bf16 ? bf16(v[i] + bf16(b)) : v[i] + b;
    }
    return v;
  }

  Floats rotated(Floats v, const Floats& angles) const {
    ref_rotate(v, angles.data(), d_);
    round_to_bf16(v);
    return v;
  }

  float x_of(const float* x, std::int64_t h, std::int64_t r, std::int64_t p) const {
    return d_.mimo ? x[p] * in_.mimo_x[(h * d_.rank + r) * d_.head_dim + p] : x[p];
  }

  // mimo_x as TileLang takes it.
  float psi_of(std::int64_t h, std::int64_t r, std::int64_t p) const {
    return d_.mimo ? bf16(in_.mimo_x[(h * d_.rank + r) * d_.head_dim + p]) : 1;
  }

  // The state before the first token, as their prefill starts: the last token's pending half is
  // added at once. [p][n]
  Floats first_state(std::int64_t h, const Token& first) const {
    const std::int64_t n = d_.state;
    const float weight = first.dt * (1 - first.lam);
    const auto from = state_.ssm.begin() + h * d_.head_dim * n;
    Floats ssm(from, from + d_.head_dim * n);
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const float* k = &state_.k[(r * d_.heads + h) * n];
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const float x = x_of(&state_.v[h * d_.head_dim], h, r, p);
        for (std::int64_t i = 0; i < n; ++i) ssm[p * n + i] += x * k[i] * weight;
      }
    }
    return ssm;
  }

  // gamma, and scale from the token behind. TileLang takes dt, and what comes of it, in bf16.
  void weigh(Token& token, const Token* next) const {
    const float pending = next == nullptr ? 0
                          : d_.mimo       ? bf16(bf16(next->dt) * (1 - next->lam))
                                          : next->dt * (1 - next->lam);
    token.gamma = (d_.mimo ? bf16(token.dt) : token.dt) * token.lam;
    token.scale = token.gamma + pending;
    if (d_.mimo) token.scale = bf16(token.scale);
  }

  void prepare(std::int64_t t, std::int64_t h, Token& token) {
    Floats angles = advance_angles(t, h, token.dt);
    if (!d_.mimo) {  // their Triton kernel keeps the angles of tokens in bf16
      for (float& a : angles) a = bf16(a - kTurn * std::floor(a / kTurn));
    }
    std::vector<Floats> q, k;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      // TileLang adds the biases in bf16.
      q.push_back(biased(in_.out_c, in_.out_c_norm, in_.out_c_bias, t, h, r, d_.mimo));
      k.push_back(biased(in_.in_b, in_.in_b_norm, in_.in_b_bias, t, h, r, d_.mimo));
      token.q.push_back(rotated(q.back(), angles));
      token.k.push_back(rotated(k.back(), angles));
      // SISO scales before it rounds, MIMO after.
      Floats scaled = d_.mimo ? token.k.back() : k.back();
      if (!d_.mimo) ref_rotate(scaled, angles.data(), d_);
      for (float& v : scaled) v = bf16(v * token.scale);
      token.k_scaled.push_back(std::move(scaled));
      Floats x(static_cast<std::size_t>(d_.head_dim));
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        x[p] = bf16(psi_of(h, r, p) * in_.x[(t * d_.heads + h) * d_.head_dim + p]);
      }
      token.x.push_back(std::move(x));
    }
    token.own = own_products(q, k);
  }

  std::vector<Floats> own_products(const std::vector<Floats>& q,
                                   const std::vector<Floats>& k) const {
    std::vector<Floats> own(q.size(), Floats(k.size()));
    for (std::size_t r = 0; r < q.size(); ++r) {
      for (std::size_t s = 0; s < k.size(); ++s) {
        if (d_.mimo) {
          own[r][s] = bf16(dot(q[r], k[s]));
        } else {
          for (std::size_t i = 0; i < q[r].size(); ++i) own[r][s] += tf32(q[r][i] * k[s][i]);
        }
      }
    }
    return own;
  }

  void prefill_head(std::int64_t h) {
    std::vector<Token> tokens;
    for (std::int64_t t = 0; t < in_.tokens; ++t) tokens.push_back(scalars(t, h));
    Floats ssm = first_state(h, tokens.front());
    for (std::int64_t t = 0; t < in_.tokens; ++t) {
      weigh(tokens[t], t + 1 < in_.tokens ? &tokens[t + 1] : nullptr);
      prepare(t, h, tokens[t]);
    }
    const std::int64_t chunk = std::max<std::int64_t>(1, kChunkRows / d_.rank);
    for (std::int64_t begin = 0; begin < in_.tokens; begin += chunk) {
      run_chunk(tokens, begin, std::min(begin + chunk, in_.tokens), h, ssm);
    }
    std::copy(ssm.begin(), ssm.end(), state_.ssm.begin() + h * d_.head_dim * d_.state);
    keep_last(tokens.back(), h);
    if (d_.mimo) return;
    for (std::int64_t i = h * d_.angles; i < (h + 1) * d_.angles; ++i) {
      state_.angle[i] = bf16(state_.angle[i] - kTurn * std::floor(state_.angle[i] / kTurn));
    }
  }

  // K and x of a head's last token.
  void keep_last(const Token& last, std::int64_t h) {
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      std::copy(last.k[r].begin(), last.k[r].end(),
                state_.k.begin() + (r * d_.heads + h) * d_.state);
    }
    const auto x = in_.x.end() - (d_.heads - h) * d_.head_dim;
    std::copy(x, x + d_.head_dim, state_.v.begin() + h * d_.head_dim);
  }

  void run_chunk(const std::vector<Token>& tokens, std::int64_t begin, std::int64_t end,
                 std::int64_t h, Floats& ssm) {
    Floats sums;  // of a * dt, from the chunk's first token
    for (std::int64_t t = begin; t < end; ++t) {
      sums.push_back((sums.empty() ? 0 : sums.back()) + tokens[t].adt);
    }
    Floats read = ssm;  // what the product with Q takes
    round_to_bf16(read);
    for (std::int64_t t = begin; t < end; ++t) {
      std::vector<Floats> o;
      for (std::int64_t r = 0; r < d_.rank; ++r) {
        o.push_back(from_state(tokens[t].q[r], read, std::exp(sums[t - begin])));
        for (std::int64_t j = begin; j < t; ++j) {
          const float decay = std::exp(sums[t - begin] - sums[j - begin]);
          for (std::int64_t s = 0; s < d_.rank; ++s) {
            const float score = bf16(dot(tokens[t].q[r], tokens[j].k_scaled[s]) * decay);
            for (std::int64_t p = 0; p < d_.head_dim; ++p) o[r][p] += score * tokens[j].x[s][p];
          }
        }
        add_own(tokens[t], h, r, o[r]);
      }
      d_.mimo ? gate_mimo(t, h, o) : gate_siso(t, h, o[0]);
    }
    for (float& v : ssm) v *= std::exp(sums.back());
    for (std::int64_t t = begin; t < end; ++t) {
      fold(tokens[t], std::exp(sums.back() - sums[t - begin]), ssm);
    }
  }

  Floats from_state(const Floats& q, const Floats& ssm, float decay) const {
    Floats o(static_cast<std::size_t>(d_.head_dim));
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      for (std::int64_t i = 0; i < d_.state; ++i) o[p] += ssm[p * d_.state + i] * q[i];
      o[p] *= decay;
    }
    return o;
  }

  // The token's own input, and D.
  void add_own(const Token& token, std::int64_t h, std::int64_t r, Floats& o) const {
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      if (!d_.mimo) {
        o[p] += (in_.skip[h] + token.own[0][0] * token.gamma) * token.x[0][p];
        continue;
      }
      float sum = 0;
      for (std::int64_t s = 0; s < d_.rank; ++s) sum = bf16(sum + token.own[r][s] * token.x[s][p]);
      sum = bf16(sum * token.gamma);
      o[p] += bf16(sum + in_.skip[h] * token.x[r][p]);
    }
  }

  void fold(const Token& token, float decay, Floats& ssm) const {
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const float x = d_.mimo ? token.x[r][p] : bf16(token.x[r][p] * decay);
        for (std::int64_t i = 0; i < d_.state; ++i) {
          const float k = d_.mimo ? bf16(token.k_scaled[r][i] * decay) : token.k_scaled[r][i];
          ssm[p * d_.state + i] += x * k;
        }
      }
    }
  }

  // SISO with an out-norm leaves its kernel in bf16 and is normalised behind it.
  void gate_siso(std::int64_t t, std::int64_t h, Floats& o) {
    const std::int64_t row = (t * d_.heads + h) * d_.head_dim;
    if (d_.out_norm) {
      round_to_bf16(o);
      o = ref_rms_norm(o.data(), d_.head_dim, &in_.out_norm[h * d_.head_dim]);
    }
    for (std::int64_t p = 0; p < d_.head_dim; ++p) y_[row + p] = o[p] * ref_silu(in_.z[row + p]);
  }

  void gate_mimo(std::int64_t t, std::int64_t h, std::vector<Floats>& o) {
    const std::int64_t row = (t * d_.heads + h) * d_.head_dim;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      if (d_.out_norm) {
        o[r] = ref_rms_norm(o[r].data(), d_.head_dim, &in_.out_norm[h * d_.head_dim]);
      }
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const std::int64_t at = (h * d_.rank + r) * d_.head_dim + p;
        const float gate = bf16(ref_silu(in_.z[row + p] * in_.mimo_z[at]));
        const float part = bf16(o[r][p] * bf16(in_.mimo_o[at]) * gate);
        // The last of the sum's roundings is that of y itself.
        const float sum = y_[row + p] + part;
        y_[row + p] = r + 1 < d_.rank ? bf16(sum) : sum;
      }
    }
  }

  // One token in floats from Q, K, x and lam in bf16.
  void step(std::int64_t t, std::int64_t h) {
    Token token = scalars(t, h);
    token.lam = bf16(token.lam);
    const float alpha = std::exp(token.adt);
    const Floats angles = advance_angles(t, h, token.dt);
    float* ssm = &state_.ssm[h * d_.head_dim * d_.state];
    float* v = &state_.v[h * d_.head_dim];
    const float* x = &in_.x[(t * d_.heads + h) * d_.head_dim];
    for (std::int64_t i = 0; i < d_.head_dim * d_.state; ++i) ssm[i] *= alpha;
    std::vector<Floats> q;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      float* k = &state_.k[(r * d_.heads + h) * d_.state];
      q.push_back(
          rotated(biased(in_.out_c, in_.out_c_norm, in_.out_c_bias, t, h, r, false), angles));
      const Floats now =
          rotated(biased(in_.in_b, in_.in_b_norm, in_.in_b_bias, t, h, r, false), angles);
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const float before = (1 - token.lam) * token.dt * alpha * x_of(v, h, r, p);
        const float input = token.lam * token.dt * x_of(x, h, r, p);
        for (std::int64_t i = 0; i < d_.state; ++i) {
          ssm[p * d_.state + i] += before * k[i] + input * now[i];
        }
      }
      std::copy(now.begin(), now.end(), k);
    }
    std::copy(x, x + d_.head_dim, v);
    read_step(t, h, q);
  }

  void read_step(std::int64_t t, std::int64_t h, const std::vector<Floats>& q) {
    const std::int64_t row = (t * d_.heads + h) * d_.head_dim;
    const auto from = state_.ssm.begin() + h * d_.head_dim * d_.state;
    const Floats ssm(from, from + d_.head_dim * d_.state);
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      Floats o = from_state(q[r], ssm, 1);
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        o[p] += in_.skip[h] * x_of(&in_.x[row], h, r, p);
      }
      if (d_.out_norm) {
        round_to_bf16(o);
        o = ref_rms_norm(o.data(), d_.head_dim, &in_.out_norm[h * d_.head_dim]);
      }
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const std::int64_t at = (h * d_.rank + r) * d_.head_dim + p;
        const float z = in_.z[row + p];
        y_[row + p] +=
            d_.mimo ? in_.mimo_o[at] * o[p] * ref_silu(z * in_.mimo_z[at]) : o[p] * ref_silu(z);
      }
    }
  }

  Mamba3RefInputs<float> in_;
  const Mamba3Dims& d_;
  Mamba3RefState<float>& state_;
  const bool rounds_;
  Floats y_;  // [t, h, p]
};

}  // namespace

std::vector<float> mamba3_authors_ref(const Mamba3RefInputs<float>& inputs,
                                      Mamba3RefState<float>& state, AuthorsPath path, bool rounds) {
  check_ref(inputs, state);
  check_input(!inputs.dims.fixed_steps,
              "a layer has fixed steps of its phases; expected one that the authors have");
  AuthorsRun run(inputs, state, rounds);
  return path == AuthorsPath::kPrefill ? run.prefill() : run.steps();
}

}  // namespace mamba3
