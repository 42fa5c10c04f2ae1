// For each way by which an input reaches the loss: the slope of a copy of the recurrence that holds
// this way constant is far from what the backward pass gives, so the tests that compare it with the
// oracle would not pass without the way's term.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "op_test_helpers.h"
#include "scan_backward_case.h"

namespace mamba3 {
namespace {

using testing::BackwardCase;
using testing::BackwardResult;
using testing::BackwardRunner;
using testing::ParamGradients;
using testing::Random;
using testing::widen;

using Doubles = std::vector<double>;
using Inputs = Mamba3RefInputs<double>;
using State = Mamba3RefState<double>;

enum class Way {
  kNone,
  kDecayDt,      // dt in alpha
  kDecayRate,    // a in alpha
  kBetaDecay,    // alpha in beta
  kBetaDt,       // dt in beta
  kBetaLam,      // 1 - lam in beta
  kGammaDt,      // dt in gamma
  kGammaLam,     // lam in gamma
  kPhaseDt,      // dt in the phase's step
  kPhaseAngle,   // the angle in it
  kPhaseBefore,  // the phase before
  kKeyPhase,     // the phase in K
  kQueryPhase,   // the phase in Q
  kStateBefore,  // the state before
  kKeyNow,       // K in the token's own product
  kKeyBefore,    // K of the token before in its product
  kValueNow,     // x likewise
  kValueBefore,
  kMimoXNow,  // mimo_x likewise
  kMimoXBefore,
  kMimoXSkip,  // mimo_x in the skip
  kValueSkip,  // x in it
  kStateRead,  // the state in the read-out
  kQuery,      // Q in it
  kKeyNorm,    // the division by the root mean square of B
  kQueryNorm,  // of C
  kOutNorm,    // of the read-out
  kGate,       // z
  kEndSsm,     // the last state, part by part
  kEndKey,
  kEndValue,
  kEndAngle,
};

double sigmoid(double v) {
  return 1 / (1 + std::exp(-v));
}

// All numbers of a run, in the order in which they were made.
class Tape {
 public:
  explicit Tape(const Tape* base, Way held) : base_(base), held_(held) {}
  // The number itself; the base run's where this way is held constant.
  double through(Way way, double value) {
    values_.push_back(value);
    return base_ != nullptr && way == held_ ? base_->values_[values_.size() - 1] : value;
  }
  Doubles through(Way way, Doubles row) {
    for (double& v : row) v = through(way, v);
    return row;
  }

 private:
  const Tape* base_;
  Way held_;
  Doubles values_;
};

// The recurrence in double, written once more.
class Held {
 public:
  Held(const Inputs& in, State state, Tape& tape)
      : in_(in), d_(in.dims), state_(std::move(state)), tape_(tape) {}

  double loss(const Doubles& grad_y, const State& grad_state) {
    double sum = 0;
    for (std::int64_t t = 0; t < in_.tokens; ++t) {
      for (std::int64_t h = 0; h < d_.heads; ++h) sum += token(t, h, grad_y);
    }
    return sum + dot(tape_.through(Way::kEndSsm, state_.ssm), grad_state.ssm) +
           dot(tape_.through(Way::kEndKey, state_.k), grad_state.k) +
           dot(tape_.through(Way::kEndValue, state_.v), grad_state.v) +
           dot(tape_.through(Way::kEndAngle, state_.angle), grad_state.angle);
  }

  static double dot(const Doubles& a, const Doubles& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  }

 private:
  double token(std::int64_t t, std::int64_t h, const Doubles& grad_y) {
    const std::int64_t at = t * d_.heads + h;
    const double dt = std::log1p(std::exp(in_.dt_raw[at] + in_.dt_bias[h]));
    const double raw = in_.decay_raw[at];
    const double act = raw >= 0 ? 1 + raw : 1 / (1 - raw);
    const double a = -std::max(act, in_.a_floor);
    const double lam = sigmoid(in_.trap_raw[at]);
    const double alpha =
        std::exp(tape_.through(Way::kDecayRate, a) * tape_.through(Way::kDecayDt, dt));
    const double gamma = tape_.through(Way::kGammaLam, lam) * tape_.through(Way::kGammaDt, dt);
    const double beta = tape_.through(Way::kBetaLam, 1 - lam) * tape_.through(Way::kBetaDt, dt) *
                        tape_.through(Way::kBetaDecay, alpha);
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      double& phase = state_.angle[h * d_.angles + i];
      const double tanh = std::tanh(in_.angle_raw[t * d_.angles + i]);
      phase = tape_.through(Way::kPhaseBefore, phase) + std::numbers::pi *
                                                            tape_.through(Way::kPhaseAngle, tanh) *
                                                            tape_.through(Way::kPhaseDt, dt);
    }
    const std::int64_t matrix = d_.head_dim * d_.state;
    for (std::int64_t i = h * matrix; i < (h + 1) * matrix; ++i) {
      state_.ssm[i] = alpha * tape_.through(Way::kStateBefore, state_.ssm[i]);
    }
    double* v = &state_.v[h * d_.head_dim];
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      double* k = &state_.k[(r * d_.heads + h) * d_.state];
      Doubles key = tape_.through(Way::kKeyBefore, Doubles(k, k + d_.state));
      add(h, beta, x_of(v, h, r, Way::kValueBefore, Way::kMimoXBefore), key);
      const Doubles row =
          turned(in_.in_b, in_.in_b_norm, in_.in_b_bias, t, h, r, Way::kKeyNorm, Way::kKeyPhase);
      std::copy(row.begin(), row.end(), k);
      add(h, gamma, x_of(&in_.x[at * d_.head_dim], h, r, Way::kValueNow, Way::kMimoXNow),
          tape_.through(Way::kKeyNow, row));
    }
    std::copy_n(&in_.x[at * d_.head_dim], d_.head_dim, v);
    return read(t, h, &grad_y[at * d_.head_dim]);
  }

  Doubles x_of(const double* x, std::int64_t h, std::int64_t r, Way value, Way weight) {
    Doubles out = tape_.through(value, Doubles(x, x + d_.head_dim));
    if (!d_.mimo) return out;
    const double* mimo = &in_.mimo_x[(h * d_.rank + r) * d_.head_dim];
    const Doubles weights = tape_.through(weight, Doubles(mimo, mimo + d_.head_dim));
    for (std::size_t p = 0; p < out.size(); ++p) out[p] *= weights[p];
    return out;
  }

  void add(std::int64_t h, double weight, const Doubles& x, const Doubles& k) {
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      for (std::int64_t i = 0; i < d_.state; ++i) {
        state_.ssm[(h * d_.head_dim + p) * d_.state + i] += weight * x[p] * k[i];
      }
    }
  }

  Doubles turned(const Doubles& raw, const Doubles& weight, const Doubles& bias, std::int64_t t,
                 std::int64_t h, std::int64_t r, Way norm, Way phase) {
    const std::int64_t n = d_.state;
    const double* v = &raw[((t * d_.rank + r) * d_.groups + h / (d_.heads / d_.groups)) * n];
    const double rms = tape_.through(norm, root_mean_square(v, n));
    Doubles out;
    for (std::int64_t i = 0; i < n; ++i) {
      out.push_back(v[i] / rms * weight[i] + bias[(h * d_.rank + r) * n + i]);
    }
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      const double angle = tape_.through(phase, state_.angle[h * d_.angles + i]);
      double& first = out[d_.mimo ? i : 2 * i];
      double& second = out[d_.mimo ? i + n / 2 : 2 * i + 1];
      const double a = first, b = second;
      first = a * std::cos(angle) - b * std::sin(angle);
      second = a * std::sin(angle) + b * std::cos(angle);
    }
    return out;
  }

  static double root_mean_square(const double* v, std::int64_t count) {
    double squares = 0;
    for (std::int64_t i = 0; i < count; ++i) squares += v[i] * v[i];
    return std::sqrt(squares / static_cast<double>(count) + 1e-5);
  }

  double read(std::int64_t t, std::int64_t h, const double* grad_y) {
    const std::int64_t row = (t * d_.heads + h) * d_.head_dim;
    const auto begin = state_.ssm.begin() + h * d_.head_dim * d_.state;
    const Doubles ssm =
        tape_.through(Way::kStateRead, Doubles(begin, begin + d_.head_dim * d_.state));
    double sum = 0;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const Doubles q =
          tape_.through(Way::kQuery, turned(in_.out_c, in_.out_c_norm, in_.out_c_bias, t, h, r,
                                            Way::kQueryNorm, Way::kQueryPhase));
      Doubles o = x_of(&in_.x[row], h, r, Way::kValueSkip, Way::kMimoXSkip);
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        o[p] *= in_.skip[h];
        for (std::int64_t i = 0; i < d_.state; ++i) o[p] += ssm[p * d_.state + i] * q[i];
      }
      const double rms = tape_.through(Way::kOutNorm, root_mean_square(o.data(), d_.head_dim));
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const std::int64_t at = (h * d_.rank + r) * d_.head_dim + p;
        if (d_.out_norm) o[p] *= in_.out_norm[h * d_.head_dim + p] / rms;
        const double z = tape_.through(Way::kGate, in_.z[row + p]) * (d_.mimo ? in_.mimo_z[at] : 1);
        sum += grad_y[p] * (d_.mimo ? in_.mimo_o[at] : 1) * o[p] * z * sigmoid(z);
      }
    }
    return sum;
  }

  const Inputs& in_;
  const Mamba3Dims& d_;
  State state_;
  Tape& tape_;
};

std::vector<Doubles*> tensors(Inputs& in, State& state) {
  return {&in.z,         &in.x,          &in.in_b,    &in.out_c,  &in.dt_raw,    &in.decay_raw,
          &in.trap_raw,  &in.angle_raw,  &in.dt_bias, &in.skip,   &in.in_b_bias, &in.out_c_bias,
          &in.in_b_norm, &in.out_c_norm, &in.mimo_x,  &in.mimo_z, &in.mimo_o,    &in.out_norm,
          &state.angle,  &state.ssm,     &state.k,    &state.v};
}

// One layer, its tokens, a direction in everything that the scan reads, and the slope along it.
struct Subject {
  Inputs in, inputs_direction;
  State start, state_direction, grad_state;
  Doubles grad_y;
  double slope = 0;  // by the backward pass
  double scale = 0;  // of what is summed to it
  Tape base{nullptr, Way::kNone};

  explicit Subject(bool mimo) {
    const BackwardCase data(dims(mimo), {12}, 71);
    in = widen(data.inputs[0]);
    start = widen(data.starts[0]);
    grad_state = widen(data.grad_states[0]);
    grad_y = widen(data.grad_y[0]);
    Random random(72);
    inputs_direction = in;
    state_direction = start;
    for (Doubles* part : tensors(inputs_direction, state_direction)) {
      *part = widen(random.normal(std::ssize(*part)));
    }
    take_slope(data);
    Held(in, start, base).loss(grad_y, grad_state);
  }

  static Mamba3Dims dims(bool mimo) {
    Mamba3Dims dims;
    dims.heads = 2;
    dims.head_dim = 6;
    dims.state = 8;
    dims.groups = 2;
    dims.rank = mimo ? 3 : 1;
    dims.angles = 3;
    dims.mimo = mimo;
    dims.out_norm = mimo;
    return dims;
  }

  void take_slope(const BackwardCase& data) {
    ParamGradients params(in.dims);
    const BackwardResult got = BackwardRunner(data, {}).run(params)[0];
    const auto along = [&](double grad, double direction) {
      slope += grad * direction;
      scale += grad * direction * grad * direction;
    };
    const auto directions = tensors(inputs_direction, state_direction);
    auto column = got.columns.begin();
    for (std::int64_t t = 0; t < in.tokens; ++t) {
      for (int part = 0; part < 8; ++part) {
        const std::int64_t width = std::ssize(*directions[part]) / in.tokens;
        for (std::int64_t i = 0; i < width; ++i)
          along(*column++, (*directions[part])[t * width + i]);
      }
    }
    std::vector<const std::vector<float>*> rest;
    for (const auto* part : params.all()) rest.push_back(part);
    for (const auto* part : {&got.state.angle, &got.state.ssm, &got.state.k, &got.state.v}) {
      rest.push_back(part);
    }
    for (std::size_t part = 0; part < rest.size(); ++part) {
      for (std::size_t i = 0; i < rest[part]->size(); ++i) {
        along((*rest[part])[i], (*directions[8 + part])[i]);
      }
    }
    scale = std::sqrt(scale);
  }

  // Of the copy that holds one way constant, by differences of fourth order.
  double slope_without(Way way) const {
    constexpr double kStep = 1e-4;
    const auto at = [&](double step) {
      Inputs moved = in;
      State state = start;
      Inputs direction = inputs_direction;
      State direction_state = state_direction;
      const auto values = tensors(moved, state);
      const auto by = tensors(direction, direction_state);
      for (std::size_t part = 0; part < values.size(); ++part) {
        for (std::size_t i = 0; i < values[part]->size(); ++i) {
          (*values[part])[i] += step * (*by[part])[i];
        }
      }
      Tape tape(&base, way);
      return Held(moved, state, tape).loss(grad_y, grad_state);
    };
    return (8 * (at(kStep) - at(-kStep)) - (at(2 * kStep) - at(-2 * kStep))) / (12 * kStep);
  }
};

const Subject& subject(bool mimo) {
  static const Subject siso_subject(false);
  static const Subject mimo_subject(true);
  return mimo ? mimo_subject : siso_subject;
}

// fp32 gradients are this good; a missing term must be so many times worse.
constexpr double kBound = 1e-5;
constexpr double kFarBeyond = 20;

void expect_noticed(Way way, bool mimo) {
  const Subject& s = subject(mimo);
  EXPECT_GT(std::abs(s.slope_without(way) - s.slope), kFarBeyond * kBound * s.scale)
      << static_cast<int>(way) << (mimo ? ", MIMO" : ", SISO");
}
void expect_noticed(Way way) {
  expect_noticed(way, false);
  expect_noticed(way, true);
}

TEST(MutationBackward, NothingHeldIsWithinTheBound) {
  for (const bool mimo : {false, true}) {
    const Subject& s = subject(mimo);
    EXPECT_NEAR(s.slope_without(Way::kNone), s.slope, kBound * s.scale);
  }
}

TEST(MutationBackward, Scalars) {
  for (const Way way : {Way::kDecayDt, Way::kDecayRate, Way::kBetaDecay, Way::kBetaDt,
                        Way::kBetaLam, Way::kGammaDt, Way::kGammaLam}) {
    expect_noticed(way);
  }
}

TEST(MutationBackward, Phases) {
  for (const Way way :
       {Way::kPhaseDt, Way::kPhaseAngle, Way::kPhaseBefore, Way::kKeyPhase, Way::kQueryPhase}) {
    expect_noticed(way);
  }
}

TEST(MutationBackward, StateAndItsProducts) {
  for (const Way way :
       {Way::kStateBefore, Way::kKeyNow, Way::kKeyBefore, Way::kValueNow, Way::kValueBefore}) {
    expect_noticed(way);
  }
}

TEST(MutationBackward, ReadOut) {
  for (const Way way : {Way::kStateRead, Way::kQuery, Way::kValueSkip, Way::kGate}) {
    expect_noticed(way);
  }
}

TEST(MutationBackward, Norms) {
  expect_noticed(Way::kKeyNorm);
  expect_noticed(Way::kQueryNorm);
  expect_noticed(Way::kOutNorm, true);
}

TEST(MutationBackward, RankProjection) {
  for (const Way way : {Way::kMimoXNow, Way::kMimoXBefore, Way::kMimoXSkip}) {
    expect_noticed(way, true);
  }
}

TEST(MutationBackward, LastState) {
  for (const Way way : {Way::kEndSsm, Way::kEndKey, Way::kEndValue, Way::kEndAngle}) {
    expect_noticed(way);
  }
}

}  // namespace
}  // namespace mamba3
