// For each term of the recurrence: a copy that drops or distorts it is far from what the step and
// the scan compute, so the tests that compare these with the oracle would not pass without the
// term.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "core/tolerance.h"
#include "mamba3_case.h"
#include "op_test_helpers.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3 {
namespace {

using testing::params_of;
using testing::Random;
using testing::random_inputs;
using testing::random_state;
using testing::Rows;
using testing::Slots;
using testing::widen;

using Doubles = std::vector<double>;

enum class Term {
  kNone,
  kBeta,             // the previous token's product dropped
  kBetaDecay,        // ... kept, but not decayed
  kPreviousKey,      // ... with this token's K
  kPreviousValue,    // ... with this token's x
  kGamma,            // this token's product dropped
  kGammaIsDt,        // ... weighted by dt alone
  kDecay,            // alpha = 1
  kFloor,            // no A floor
  kActivation,       // the other A activation
  kDtBias,           // dropped
  kInBBias,          // dropped
  kOutCBias,         // dropped
  kInBNorm,          // neither division nor weight
  kOutCNorm,         // neither division nor weight
  kInBNormWeight,    // division only
  kOutCNormWeight,   // division only
  kRotation,         // dropped
  kKeyRotation,      // Q alone is turned
  kAngleScan,        // each token's own angle, not their sum
  kAngleTanh,        // the angle itself
  kAngleDt,          // not scaled by dt
  kAngleStart,       // the state's angle forgotten
  kPairing,          // the pairs of the other kind
  kPhaseBf16,        // sums of angles rounded to bf16
  kSkip,             // dropped
  kSkipRaw,          // D x, without mimo_x
  kGate,             // dropped
  kGateSigmoid,      // sigmoid instead of silu
  kMimoX,            // taken as one
  kMimoZ,            // taken as one
  kMimoO,            // taken as one
  kFirstRankOnly,    // the other ranks' outer products dropped
  kOutNorm,          // dropped
  kOutNormWeight,    // division only
  kOutNormPerLayer,  // over all heads instead of each
  kGroups,           // heads of a group interleaved instead of consecutive
};

double sigmoid(double v) {
  return 1 / (1 + std::exp(-v));
}

double activation(double v, AActivation which) {
  if (which == AActivation::kSoftplus) return std::log1p(std::exp(v));
  return v >= 0 ? 1 + v : 1 / (1 - v);
}

// The recurrence in double, written once more, with one term changed.
class Mutated {
 public:
  Mutated(const Mamba3RefInputs<double>& in, Mamba3RefState<double>& state, Term term)
      : in_(in), d_(in.dims), state_(state), term_(term) {
    if (is(Term::kAngleStart)) state_.angle.assign(state_.angle.size(), 0);
  }

  Doubles run() {
    Doubles y;
    for (std::int64_t t = 0; t < in_.tokens; ++t) {
      Doubles outputs;  // [h, r, p]
      for (std::int64_t h = 0; h < d_.heads; ++h) token(t, h, outputs);
      if (d_.out_norm && !is(Term::kOutNorm)) normalise(outputs);
      for (std::int64_t h = 0; h < d_.heads; ++h) gate(t, h, outputs, y);
    }
    return y;
  }

 private:
  bool is(Term term) const { return term_ == term; }
  std::int64_t channel(std::int64_t h, std::int64_t r, std::int64_t p) const {
    return (h * d_.rank + r) * d_.head_dim + p;
  }
  double mimo(const Doubles& v, Term term, std::int64_t at) const {
    return d_.mimo && !is(term) ? v[at] : 1;
  }

  void token(std::int64_t t, std::int64_t h, Doubles& outputs) {
    const std::int64_t at = t * d_.heads + h;
    const double bias = is(Term::kDtBias) ? 0 : in_.dt_bias[h];
    const double dt = std::log1p(std::exp(in_.dt_raw[at] + bias));
    const double alpha = is(Term::kDecay) ? 1 : std::exp(-decay_rate(at) * dt);
    const double gamma = is(Term::kGamma)       ? 0
                         : is(Term::kGammaIsDt) ? dt
                                                : sigmoid(in_.trap_raw[at]) * dt;
    const double beta =
        is(Term::kBeta) ? 0 : sigmoid(-in_.trap_raw[at]) * dt * (is(Term::kBetaDecay) ? 1 : alpha);
    turn(t, h, dt);
    Doubles before;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const double* k = &state_.k[(r * d_.heads + h) * d_.state];
      before.insert(before.end(), k, k + d_.state);
    }
    const Doubles now = keys(t, h);
    update(h, alpha, beta, is(Term::kPreviousKey) ? now : before,
           is(Term::kPreviousValue) ? &in_.x[at * d_.head_dim] : &state_.v[h * d_.head_dim]);
    update(h, 1, gamma, now, &in_.x[at * d_.head_dim]);
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      state_.v[h * d_.head_dim + p] = in_.x[at * d_.head_dim + p];
    }
    read(t, h, outputs);
  }

  double decay_rate(std::int64_t at) const {
    const bool heavy = d_.a_activation == AActivation::kHeavyTail;
    const AActivation which =
        heavy != is(Term::kActivation) ? AActivation::kHeavyTail : AActivation::kSoftplus;
    const double rate = activation(in_.decay_raw[at], which);
    return is(Term::kFloor) ? rate : std::fmax(rate, in_.a_floor);
  }

  void turn(std::int64_t t, std::int64_t h, double dt) {
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      const double raw = in_.angle_raw[t * d_.angles + i];
      const double step = std::numbers::pi * (is(Term::kAngleTanh) ? raw : std::tanh(raw)) *
                          (is(Term::kAngleDt) ? 1 : dt);
      double& angle = state_.angle[h * d_.angles + i];
      angle = is(Term::kAngleScan) ? step : angle + step;
      if (is(Term::kPhaseBf16)) angle = to_float(to_bf16(static_cast<float>(angle)));
    }
  }

  Doubles keys(std::int64_t t, std::int64_t h) {
    Doubles all;
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const Doubles k = row(in_.in_b, in_.in_b_norm, in_.in_b_bias, t, h, r, Term::kInBNorm,
                            Term::kInBNormWeight, Term::kInBBias, is(Term::kKeyRotation));
      std::copy(k.begin(), k.end(), state_.k.begin() + (r * d_.heads + h) * d_.state);
      all.insert(all.end(), k.begin(), k.end());
    }
    return all;
  }

  Doubles row(const Doubles& raw, const Doubles& weight, const Doubles& bias, std::int64_t t,
              std::int64_t h, std::int64_t r, Term no_norm, Term no_weight, Term no_bias,
              bool no_rotation) const {
    const std::int64_t n = d_.state;
    const std::int64_t group = is(Term::kGroups) ? h % d_.groups : h / (d_.heads / d_.groups);
    const double* v = &raw[((t * d_.rank + r) * d_.groups + group) * n];
    double squares = 0;
    for (std::int64_t i = 0; i < n; ++i) squares += v[i] * v[i];
    const double rms = std::sqrt(squares / static_cast<double>(n) + 1e-5);
    Doubles out;
    for (std::int64_t i = 0; i < n; ++i) {
      double value = v[i];
      if (!is(no_norm)) value /= rms;
      if (!is(no_norm) && !is(no_weight)) value *= weight[i];
      if (!is(no_bias)) value += bias[(h * d_.rank + r) * n + i];
      out.push_back(value);
    }
    if (!no_rotation && !is(Term::kRotation)) rotate(out, h);
    return out;
  }

  void rotate(Doubles& v, std::int64_t h) const {
    const bool halves = d_.mimo != is(Term::kPairing);
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      const double angle = state_.angle[h * d_.angles + i];
      double& first = v[halves ? i : 2 * i];
      double& second = v[halves ? i + d_.state / 2 : 2 * i + 1];
      const double a = first;
      const double b = second;
      first = a * std::cos(angle) - b * std::sin(angle);
      second = a * std::sin(angle) + b * std::cos(angle);
    }
  }

  // ssm = keep * ssm + weight * sum over ranks of X K^T.
  void update(std::int64_t h, double keep, double weight, const Doubles& k, const double* x) {
    const std::int64_t ranks = is(Term::kFirstRankOnly) ? 1 : d_.rank;
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      double* ssm = &state_.ssm[(h * d_.head_dim + p) * d_.state];
      for (std::int64_t i = 0; i < d_.state; ++i) {
        double sum = 0;
        for (std::int64_t r = 0; r < ranks; ++r) {
          sum += x[p] * mimo(in_.mimo_x, Term::kMimoX, channel(h, r, p)) * k[r * d_.state + i];
        }
        ssm[i] = keep * ssm[i] + weight * sum;
      }
    }
  }

  void read(std::int64_t t, std::int64_t h, Doubles& outputs) const {
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      const Doubles q = row(in_.out_c, in_.out_c_norm, in_.out_c_bias, t, h, r, Term::kOutCNorm,
                            Term::kOutCNormWeight, Term::kOutCBias, false);
      for (std::int64_t p = 0; p < d_.head_dim; ++p) {
        const double* ssm = &state_.ssm[(h * d_.head_dim + p) * d_.state];
        double o = 0;
        for (std::int64_t i = 0; i < d_.state; ++i) o += ssm[i] * q[i];
        double x = in_.x[(t * d_.heads + h) * d_.head_dim + p];
        if (!is(Term::kSkipRaw)) x *= mimo(in_.mimo_x, Term::kMimoX, channel(h, r, p));
        outputs.push_back(o + (is(Term::kSkip) ? 0 : in_.skip[h]) * x);
      }
    }
  }

  void normalise(Doubles& outputs) const {
    const bool layer = is(Term::kOutNormPerLayer);
    const auto all = static_cast<std::int64_t>(outputs.size());
    const std::int64_t count = layer ? all : d_.head_dim;
    for (std::int64_t begin = 0; begin < all; begin += count) {
      double squares = 0;
      for (std::int64_t i = begin; i < begin + count; ++i) squares += outputs[i] * outputs[i];
      const double rms = std::sqrt(squares / static_cast<double>(count) + 1e-5);
      for (std::int64_t i = begin; i < begin + count; ++i) {
        const std::int64_t head = i / (d_.rank * d_.head_dim);
        const double weight = in_.out_norm[head * d_.head_dim + i % d_.head_dim];
        outputs[i] *= (is(Term::kOutNormWeight) ? 1 : weight) / rms;
      }
    }
  }

  void gate(std::int64_t t, std::int64_t h, const Doubles& outputs, Doubles& y) const {
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      double sum = 0;
      for (std::int64_t r = 0; r < d_.rank; ++r) {
        const std::int64_t at = channel(h, r, p);
        const double z =
            in_.z[(t * d_.heads + h) * d_.head_dim + p] * mimo(in_.mimo_z, Term::kMimoZ, at);
        const double gate = is(Term::kGate) ? 1 : sigmoid(z) * (is(Term::kGateSigmoid) ? 1 : z);
        sum += mimo(in_.mimo_o, Term::kMimoO, at) * outputs[at] * gate;
      }
      y.push_back(sum);
    }
  }

  const Mamba3RefInputs<double>& in_;
  const Mamba3Dims& d_;
  Mamba3RefState<double>& state_;
  Term term_;
};

// One layer, its inputs, and what the two paths make of them.
struct Subject {
  Mamba3RefInputs<float> in;
  Mamba3RefState<float> start;
  std::vector<float> naive, step, scan;  // y

  explicit Subject(bool mimo) {
    Mamba3Dims dims;
    dims.heads = 4;
    dims.head_dim = 20;
    dims.state = 18;
    dims.groups = 2;
    dims.rank = mimo ? 3 : 1;
    dims.angles = 5;
    dims.mimo = mimo;
    dims.out_norm = mimo;
    dims.a_floor = 0.5f;
    Random random(21);
    in = random_inputs(dims, 12, random);
    start = random_state(dims, random);
    Mamba3RefState<float> state = start;
    naive = mamba3_scan_ref(in, state);
    step = run(true);
    scan = run(false);
  }

  std::vector<float> run(bool by_steps) const {
    const std::int64_t inner = in.dims.heads * in.dims.head_dim;
    Slots pool(in.dims, 1, 0);
    pool.put(0, start);
    Rows rows(in.dims, in.tokens, 0);
    for (std::int64_t t = 0; t < in.tokens; ++t) rows.put(t, in, t);
    std::vector<float> y(static_cast<std::size_t>(in.tokens * inner));
    const std::vector<std::int32_t> slots{0};
    Context ctx(with_threads(1));
    if (!by_steps) {
      const std::vector<std::int64_t> cu_seqlens{0, in.tokens};
      Mamba3ScanArgs args;
      args.dims = in.dims;
      args.params = params_of(in);
      args.columns = rows.columns(in.dims);
      args.cu_seqlens = cu_seqlens;
      args.slots = slots;
      args.states = pool.states();
      args.y = TensorView<float, 2>(y.data(), {in.tokens, inner});
      mamba3_scan(args, ctx);
      return y;
    }
    for (std::int64_t t = 0; t < in.tokens; ++t) {
      Mamba3StepArgs args;
      args.dims = in.dims;
      args.params = params_of(in);
      args.columns = split_columns(rows.data.data() + t * rows.stride, rows.stride, in.dims);
      args.slots = slots;
      args.states = pool.states();
      args.y = TensorView<float, 2>(y.data() + t * inner, {1, inner});
      mamba3_step(args, ctx);
    }
    return y;
  }

  Comparison against(const std::vector<float>& y, Term term) const {
    Mamba3RefState<double> state = widen(start);
    const Mamba3RefInputs<double> wide = widen(in);
    const Doubles truth = Mutated(wide, state, term).run();
    Comparison c = compare(std::span<const float>(y), std::span<const float>(naive),
                           std::span<const double>(truth), kFloatRounding);
    // The bound is that of the true recurrence: the plain run has no term dropped.
    Mamba3RefState<double> true_state = widen(start);
    const Doubles exact = mamba3_scan_ref(wide, true_state);
    c.naive_error = largest_error(std::span<const float>(naive), std::span<const double>(exact),
                                  ErrorMetric::kRelative);
    c.bound = 2 * c.naive_error + kFloatRounding;
    return c;
  }
};

const Subject& subject(bool mimo) {
  static const Subject siso_subject(false);
  static const Subject mimo_subject(true);
  return mimo ? mimo_subject : siso_subject;
}

// How far beyond the bound a missing term must be.
constexpr double kFarBeyond = 20;

void expect_noticed(Term term, bool mimo) {
  const Subject& s = subject(mimo);
  for (const auto* y : {&s.step, &s.scan}) {
    const Comparison c = s.against(*y, term);
    EXPECT_GT(c.error, kFarBeyond * c.bound)
        << (y == &s.step ? "step" : "scan") << (mimo ? ", MIMO" : ", SISO");
  }
}
void expect_noticed(Term term) {
  expect_noticed(term, false);
  expect_noticed(term, true);
}

TEST(Mutation, NothingChangedIsWithinTheBound) {
  for (const bool mimo : {false, true}) {
    const Subject& s = subject(mimo);
    for (const auto* y : {&s.step, &s.scan}) {
      const Comparison c = s.against(*y, Term::kNone);
      EXPECT_LE(c.error, c.bound);
    }
  }
}

TEST(Mutation, TrapezoidBeta) {
  expect_noticed(Term::kBeta);
  expect_noticed(Term::kBetaDecay);
  expect_noticed(Term::kPreviousKey);
  expect_noticed(Term::kPreviousValue);
}

TEST(Mutation, GammaOnTheDiagonal) {
  expect_noticed(Term::kGamma);
  expect_noticed(Term::kGammaIsDt);
}

TEST(Mutation, Decay) {
  expect_noticed(Term::kDecay);
  expect_noticed(Term::kActivation);
  expect_noticed(Term::kDtBias);
}

TEST(Mutation, Floor) {
  expect_noticed(Term::kFloor);
}

TEST(Mutation, Bias) {
  expect_noticed(Term::kInBBias);
  expect_noticed(Term::kOutCBias);
}

TEST(Mutation, BcNorm) {
  expect_noticed(Term::kInBNorm);
  expect_noticed(Term::kOutCNorm);
  expect_noticed(Term::kInBNormWeight);
  expect_noticed(Term::kOutCNormWeight);
}

TEST(Mutation, AngleScan) {
  expect_noticed(Term::kRotation);
  expect_noticed(Term::kKeyRotation);
  expect_noticed(Term::kAngleScan);
  expect_noticed(Term::kAngleTanh);
  expect_noticed(Term::kAngleDt);
  expect_noticed(Term::kAngleStart);
  expect_noticed(Term::kPairing);
}

TEST(Mutation, RoundingOfTurns) {
  expect_noticed(Term::kPhaseBf16);
}

TEST(Mutation, Skip) {
  expect_noticed(Term::kSkip);
  expect_noticed(Term::kSkipRaw, true);
}

TEST(Mutation, Gate) {
  expect_noticed(Term::kGate);
  expect_noticed(Term::kGateSigmoid);
}

TEST(Mutation, RankProjection) {
  expect_noticed(Term::kMimoX, true);
  expect_noticed(Term::kMimoZ, true);
  expect_noticed(Term::kMimoO, true);
  expect_noticed(Term::kFirstRankOnly, true);
}

TEST(Mutation, OutNorm) {
  expect_noticed(Term::kOutNorm, true);
  expect_noticed(Term::kOutNormWeight, true);
  expect_noticed(Term::kOutNormPerLayer, true);
}

TEST(Mutation, Groups) {
  expect_noticed(Term::kGroups);
}

}  // namespace
}  // namespace mamba3
