// The ring of deferred tokens in double, one sequence, in plain loops: the algebra that the GPU's
// step relies on, and nothing of its code. Entries hold what a token brought (normalised B, x, its
// numbers); rotated K is built again from the phases before the first entry.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "ops/mamba3_scan/mamba3_scan_ref.h"

namespace mamba3::testing {

class RingOracle {
 public:
  using Row = std::vector<double>;

  RingOracle(const Mamba3RefInputs<double>& inputs, const Mamba3RefState<double>& start,
             std::int64_t ring_tokens)
      : in_(inputs), d_(inputs.dims), tokens_(ring_tokens), state_(start) {}

  // Reads token t of the inputs; y [h * p].
  Row step(std::int64_t t) {
    Entry fresh = read(t);
    Row y;
    const bool fold = entries_.empty() || count() >= tokens_;
    for (std::int64_t h = 0; h < d_.heads; ++h) {
      if (fold) fold_head(h, &fresh);
    }
    if (fold) entries_.clear();
    entries_.push_back(fresh);
    for (std::int64_t h = 0; h < d_.heads; ++h) read_out(t, h, y);
    return y;
  }
  std::int64_t count() const { return static_cast<std::int64_t>(entries_.size()); }
  void roll_back(std::int64_t tokens) { entries_.resize(entries_.size() - tokens); }
  // The canonical tuple.
  const Mamba3RefState<double>& settle() {
    if (entries_.empty()) return state_;
    for (std::int64_t h = 0; h < d_.heads; ++h) fold_head(h, nullptr);
    entries_.clear();
    return state_;
  }

 private:
  struct Numbers {
    double dt, log_decay, now, carry;
  };
  struct Entry {
    std::vector<Row> normed_b;  // [r * g]
    Row tanh;                   // [s]
    Row x;                      // [h * p]
    std::vector<Numbers> heads;
  };

  static Row normed(const double* row, const Row& weight) {
    double squares = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) squares += row[i] * row[i];
    const double rms = std::sqrt(squares / static_cast<double>(weight.size()) + 1e-5);
    Row out;
    for (std::size_t i = 0; i < weight.size(); ++i) out.push_back(row[i] / rms * weight[i]);
    return out;
  }

  Entry read(std::int64_t t) const {
    Entry out;
    for (std::int64_t i = 0; i < d_.rank * d_.groups; ++i) {
      out.normed_b.push_back(
          normed(&in_.in_b[(t * d_.rank * d_.groups + i) * d_.state], in_.in_b_norm));
    }
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      out.tanh.push_back(std::tanh(in_.angle_raw[t * d_.angles + i]));
    }
    const std::int64_t inner = d_.heads * d_.head_dim;
    out.x.assign(in_.x.begin() + t * inner, in_.x.begin() + (t + 1) * inner);
    for (std::int64_t h = 0; h < d_.heads; ++h) {
      const std::int64_t at = t * d_.heads + h;
      const double dt = std::log1p(std::exp(in_.dt_raw[at] + in_.dt_bias[h]));
      const double v = in_.decay_raw[at];
      const double a = std::max(v >= 0 ? 1 + v : 1 / (1 - v), in_.a_floor);
      const double lam = 1 / (1 + std::exp(-in_.trap_raw[at]));
      out.heads.push_back({dt, -a * dt, lam * dt, (1 - lam) * dt});
    }
    return out;
  }

  // Phases of head h after entry j; those before the first for j = -1.
  Row phases(std::int64_t h, std::int64_t j) const {
    Row out(state_.angle.begin() + h * d_.angles, state_.angle.begin() + (h + 1) * d_.angles);
    for (std::int64_t u = 0; u <= j; ++u) {
      for (std::int64_t i = 0; i < d_.angles; ++i) {
        out[i] += std::numbers::pi * entries_[u].tanh[i] * entries_[u].heads[h].dt;
      }
    }
    return out;
  }
  Row turned(Row row, const double* bias, const Row& phase) const {
    for (std::int64_t i = 0; i < d_.state; ++i) row[i] += bias[i];
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      double& a = d_.mimo ? row[i] : row[2 * i];
      double& b = d_.mimo ? row[i + d_.state / 2] : row[2 * i + 1];
      const double turned_a = a * std::cos(phase[i]) - b * std::sin(phase[i]);
      b = a * std::sin(phase[i]) + b * std::cos(phase[i]);
      a = turned_a;
    }
    return row;
  }
  std::int64_t group(std::int64_t h) const { return h / (d_.heads / d_.groups); }
  Row k_of(std::int64_t j, std::int64_t h, std::int64_t r) const {
    return turned(entries_[j].normed_b[r * d_.groups + group(h)],
                  &in_.in_b_bias[(h * d_.rank + r) * d_.state], phases(h, j));
  }
  double x_of(const double* x, std::int64_t h, std::int64_t r, std::int64_t p) const {
    return d_.mimo ? x[p] * in_.mimo_x[(h * d_.rank + r) * d_.head_dim + p] : x[p];
  }
  // The final weight of entry j, where `next` follows it; null: nothing does.
  static double weight(const Numbers& own, const Numbers* next) {
    return own.now + (next != nullptr ? next->carry : 0);
  }

  void add_outer(std::int64_t h, std::int64_t r, double weight, const double* x, const Row& k) {
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      for (std::int64_t n = 0; n < d_.state; ++n) {
        state_.ssm[(h * d_.head_dim + p) * d_.state + n] += weight * x_of(x, h, r, p) * k[n];
      }
    }
  }

  // All entries into the state, of which the newest has its final weight only if `fresh` follows;
  // without entries, the canonical tuple's carry. Without `fresh` the tuple becomes canonical.
  void fold_head(std::int64_t h, const Entry* fresh) {
    const Numbers* after = fresh != nullptr ? &fresh->heads[h] : nullptr;
    double* ssm = &state_.ssm[h * d_.head_dim * d_.state];
    double* v = &state_.v[h * d_.head_dim];
    if (entries_.empty()) {
      for (std::int64_t r = 0; r < d_.rank; ++r) {
        const double* k = &state_.k[(r * d_.heads + h) * d_.state];
        add_outer(h, r, after->carry, v, Row(k, k + d_.state));
      }
      return;
    }
    for (std::int64_t j = 0; j < count(); ++j) {
      const Numbers& own = entries_[j].heads[h];
      for (std::int64_t i = 0; i < d_.head_dim * d_.state; ++i) ssm[i] *= std::exp(own.log_decay);
      const Numbers* next = j + 1 < count() ? &entries_[j + 1].heads[h] : after;
      for (std::int64_t r = 0; r < d_.rank; ++r) {
        add_outer(h, r, weight(own, next), &entries_[j].x[h * d_.head_dim], k_of(j, h, r));
      }
    }
    if (fresh == nullptr) {
      for (std::int64_t r = 0; r < d_.rank; ++r) {
        const Row k = k_of(count() - 1, h, r);
        std::copy(k.begin(), k.end(), &state_.k[(r * d_.heads + h) * d_.state]);
      }
      std::copy_n(&entries_.back().x[h * d_.head_dim], d_.head_dim, v);
    }
    const Row phase = phases(h, count() - 1);
    std::copy(phase.begin(), phase.end(), &state_.angle[h * d_.angles]);
  }

  // The newest entry's y from the state and the scores with every entry; nothing is written.
  void read_out(std::int64_t t, std::int64_t h, Row& y) const {
    const std::int64_t last = count() - 1;
    const std::int64_t own = (t * d_.heads + h) * d_.head_dim;
    Row sum(d_.head_dim, 0.0);
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const std::int64_t row = (t * d_.rank + r) * d_.groups + group(h);
      const Row q = turned(normed(&in_.out_c[row * d_.state], in_.out_c_norm),
                           &in_.out_c_bias[(h * d_.rank + r) * d_.state], phases(h, last));
      Row o(d_.head_dim, 0.0);
      double after = 0;  // log-decays of the entries after j
      for (std::int64_t j = last; j >= 0; --j) {
        const Numbers& numbers = entries_[j].heads[h];
        const double s =
            j == last ? numbers.now : std::exp(after) * weight(numbers, &entries_[j + 1].heads[h]);
        for (std::int64_t of = 0; of < d_.rank; ++of) {
          const Row k = k_of(j, h, of);
          double score = 0;
          for (std::int64_t n = 0; n < d_.state; ++n) score += q[n] * k[n];
          for (std::int64_t p = 0; p < d_.head_dim; ++p) {
            o[p] += s * score * x_of(&entries_[j].x[h * d_.head_dim], h, of, p);
          }
        }
        after += numbers.log_decay;
      }
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const double* ssm = &state_.ssm[(h * d_.head_dim + p) * d_.state];
        for (std::int64_t n = 0; n < d_.state; ++n) o[p] += std::exp(after) * ssm[n] * q[n];
        o[p] += in_.skip[h] * x_of(&in_.x[own], h, r, p);
        const std::int64_t at = (h * d_.rank + r) * d_.head_dim + p;
        const double z = in_.z[own + p] * (d_.mimo ? in_.mimo_z[at] : 1);
        sum[p] += o[p] * z / (1 + std::exp(-z)) * (d_.mimo ? in_.mimo_o[at] : 1);
      }
    }
    y.insert(y.end(), sum.begin(), sum.end());
  }

  const Mamba3RefInputs<double>& in_;
  const Mamba3Dims& d_;
  std::int64_t tokens_;
  Mamba3RefState<double> state_;  // angle: before the first entry
  std::vector<Entry> entries_;
};

}  // namespace mamba3::testing
