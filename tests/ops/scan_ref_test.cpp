#include "ops/mamba3_scan/mamba3_scan_ref.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "core/tolerance.h"
#include "mamba3/error.h"
#include "mamba3_case.h"

namespace mamba3 {
namespace {

using testing::awkward_dims;
using testing::describe;
using testing::Random;
using testing::random_inputs;
using testing::random_state;
using testing::widen;

using Doubles = std::vector<double>;

// The same layer from zeros in its merged form: every token looks at all earlier ones, no state.
//   o_t = sum_{j<t} exp(cs_t - cs_j) s_j (Q_t K_j) X_j + gamma_t (Q_t K_t) X_t,
//   s_j = gamma_j + (1 - lam_{j+1}) dt_{j+1}
class MergedForm {
 public:
  explicit MergedForm(const Mamba3RefInputs<double>& in) : in_(in), d_(in.dims) {}

  Doubles y() {
    Doubles out(in_.x.size());
    for (std::int64_t h = 0; h < d_.heads; ++h) {
      prepare(h);
      for (std::int64_t t = 0; t < in_.tokens; ++t) {
        output(t, h, out.data() + (t * d_.heads + h) * d_.head_dim);
      }
    }
    return out;
  }

 private:
  static double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

  void prepare(std::int64_t h) {
    dt_.clear(), gamma_.clear(), carry_.clear(), sum_.clear();
    phase_.assign(static_cast<std::size_t>(in_.tokens * d_.angles), 0);
    double sum = 0;
    for (std::int64_t t = 0; t < in_.tokens; ++t) {
      const std::int64_t at = t * d_.heads + h;
      const double raw = in_.decay_raw[at];
      const double act = d_.a_activation == AActivation::kSoftplus ? std::log1p(std::exp(raw))
                         : raw >= 0                                ? 1 + raw
                                                                   : 1 / (1 - raw);
      dt_.push_back(std::log1p(std::exp(in_.dt_raw[at] + in_.dt_bias[h])));
      gamma_.push_back(sigmoid(in_.trap_raw[at]) * dt_[t]);
      carry_.push_back(sigmoid(-in_.trap_raw[at]) * dt_[t]);
      sum -= std::fmax(act, in_.a_floor) * dt_[t];
      sum_.push_back(sum);
      for (std::int64_t i = 0; i < d_.angles; ++i) {
        const double before = t > 0 ? phase_[(t - 1) * d_.angles + i] : 0;
        phase_[t * d_.angles + i] =
            d_.fixed_steps
                ? static_cast<double>(t + 1) * 2 * std::numbers::pi * fixed_step_turns(i, d_.angles)
                : before + std::numbers::pi * std::tanh(in_.angle_raw[t * d_.angles + i]) * dt_[t];
      }
    }
  }

  Doubles row(const Doubles& raw, const Doubles& norm, const Doubles& bias, std::int64_t t,
              std::int64_t h, std::int64_t r) const {
    const std::int64_t n = d_.state;
    const std::int64_t g = h * d_.groups / d_.heads;
    const double* v = &raw[((t * d_.rank + r) * d_.groups + g) * n];
    double mean = 0;
    for (std::int64_t i = 0; i < n; ++i) mean += v[i] * v[i] / static_cast<double>(n);
    Doubles out;
    for (std::int64_t i = 0; i < n; ++i) {
      out.push_back(v[i] / std::sqrt(mean + 1e-5) * norm[i] + bias[(h * d_.rank + r) * n + i]);
    }
    for (std::int64_t i = 0; i < d_.angles; ++i) {
      const std::int64_t first = d_.mimo ? i : 2 * i;
      const std::int64_t second = d_.mimo ? i + n / 2 : 2 * i + 1;
      const double angle = phase_[t * d_.angles + i];
      const double a = out[first];
      const double b = out[second];
      out[first] = a * std::cos(angle) - b * std::sin(angle);
      out[second] = a * std::sin(angle) + b * std::cos(angle);
    }
    return out;
  }

  double x(std::int64_t t, std::int64_t h, std::int64_t r, std::int64_t p) const {
    const double v = in_.x[(t * d_.heads + h) * d_.head_dim + p];
    return d_.mimo ? v * in_.mimo_x[(h * d_.rank + r) * d_.head_dim + p] : v;
  }

  // What token t reads of token j through rank q of j.
  double weight(std::int64_t t, std::int64_t j) const {
    if (j == t) return gamma_[t];
    return std::exp(sum_[t] - sum_[j]) * (gamma_[j] + carry_[j + 1]);
  }

  void output(std::int64_t t, std::int64_t h, double* y) const {
    for (std::int64_t r = 0; r < d_.rank; ++r) {
      Doubles o;
      const Doubles q = row(in_.out_c, in_.out_c_norm, in_.out_c_bias, t, h, r);
      for (std::int64_t p = 0; p < d_.head_dim; ++p) o.push_back(in_.skip[h] * x(t, h, r, p));
      for (std::int64_t j = 0; j <= t; ++j) {
        for (std::int64_t s = 0; s < d_.rank; ++s) {
          const Doubles k = row(in_.in_b, in_.in_b_norm, in_.in_b_bias, j, h, s);
          double score = 0;
          for (std::int64_t i = 0; i < d_.state; ++i) score += q[i] * k[i];
          for (std::int64_t p = 0; p < d_.head_dim; ++p)
            o[p] += weight(t, j) * score * x(j, h, s, p);
        }
      }
      gate(t, h, r, o, y);
    }
  }

  void gate(std::int64_t t, std::int64_t h, std::int64_t r, const Doubles& o, double* y) const {
    double mean = 0;
    for (const double v : o) mean += v * v / static_cast<double>(d_.head_dim);
    for (std::int64_t p = 0; p < d_.head_dim; ++p) {
      const std::int64_t at = (h * d_.rank + r) * d_.head_dim + p;
      double value = o[p];
      if (d_.out_norm) value *= in_.out_norm[h * d_.head_dim + p] / std::sqrt(mean + 1e-5);
      double z = in_.z[(t * d_.heads + h) * d_.head_dim + p];
      if (d_.mimo) z *= in_.mimo_z[at];
      y[p] += (d_.mimo ? in_.mimo_o[at] : 1) * value * z * sigmoid(z);
    }
  }

  const Mamba3RefInputs<double>& in_;
  const Mamba3Dims& d_;
  Doubles dt_, gamma_, carry_, sum_;  // [t]
  Doubles phase_;                     // [t, s]
};

class ScanRef : public ::testing::TestWithParam<Mamba3Dims> {};

TEST_P(ScanRef, AgreesWithTheMergedForm) {
  Random random(11);
  const Mamba3RefInputs<double> in = widen(random_inputs(GetParam(), 6, random));
  Mamba3RefState<double> state = Mamba3RefState<double>::zeros(GetParam());
  const Doubles y = mamba3_scan_ref(in, state);
  const Doubles merged = MergedForm(in).y();
  EXPECT_LT(largest_error(std::span<const double>(y), std::span<const double>(merged),
                          ErrorMetric::kRelative),
            1e-12);
}

TEST_P(ScanRef, FloatIsNearDouble) {
  Random random(12);
  const Mamba3RefInputs<float> in = random_inputs(GetParam(), 6, random);
  Mamba3RefState<float> state = random_state(GetParam(), random);
  Mamba3RefState<double> truth_state = widen(state);
  const std::vector<float> y = mamba3_scan_ref(in, state);
  const Doubles truth = mamba3_scan_ref(widen(in), truth_state);
  EXPECT_LT(largest_error(std::span<const float>(y), std::span<const double>(truth),
                          ErrorMetric::kRelative),
            1e-5);
}

TEST_P(ScanRef, CuttingASequenceChangesNoBit) {
  Random random(13);
  Mamba3RefInputs<double> in = widen(random_inputs(GetParam(), 4, random));
  const Mamba3RefState<double> start = widen(random_state(GetParam(), random));
  Mamba3RefState<double> whole_state = start;
  const Doubles whole = mamba3_scan_ref(in, whole_state);
  Mamba3RefState<double> state = start;
  Doubles y;
  for (std::int64_t t = 0; t < 4; ++t) {
    Mamba3RefInputs<double> one = in;
    one.tokens = 1;
    for (auto part : {&Mamba3RefInputs<double>::x, &Mamba3RefInputs<double>::z,
                      &Mamba3RefInputs<double>::in_b, &Mamba3RefInputs<double>::out_c,
                      &Mamba3RefInputs<double>::dt_raw, &Mamba3RefInputs<double>::decay_raw,
                      &Mamba3RefInputs<double>::trap_raw, &Mamba3RefInputs<double>::angle_raw}) {
      const std::int64_t width = static_cast<std::int64_t>((in.*part).size()) / 4;
      const auto from = (in.*part).begin() + t * width;
      (one.*part).assign(from, from + width);
    }
    const Doubles some = mamba3_scan_ref(one, state);
    y.insert(y.end(), some.begin(), some.end());
  }
  EXPECT_EQ(y, whole);
  EXPECT_EQ(state.ssm, whole_state.ssm);
  EXPECT_EQ(state.k, whole_state.k);
  EXPECT_EQ(state.v, whole_state.v);
  EXPECT_EQ(state.angle, whole_state.angle);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ScanRef, ::testing::ValuesIn(awkward_dims()),
                         [](const auto& p) { return describe(p.param); });

// One head, one channel, one token: every number by hand.
Mamba3RefInputs<double> one_number() {
  Mamba3RefInputs<double> in;
  in.dims.heads = in.dims.head_dim = in.dims.state = 1;
  in.tokens = 1;
  in.x = {3};
  in.z = {1e300};  // silu is the identity here
  in.in_b = {0};
  in.out_c = {0};
  in.dt_raw = {0};
  in.decay_raw = {0};
  in.trap_raw = {0};
  in.dt_bias = {0};
  in.skip = {0};
  in.in_b_bias = {1};
  in.out_c_bias = {1};
  in.in_b_norm = {1};
  in.out_c_norm = {1};
  return in;
}

TEST(ScanRefEnds, SoftplusIsExactAtBothEnds) {
  for (const auto& [raw, dt] :
       std::vector<std::pair<double, double>>{{800, 800},
                                              {30, 30.000000000000092},
                                              {0, std::numbers::ln2},
                                              {-40, 4.248354255291589e-18}}) {
    Mamba3RefInputs<double> in = one_number();
    in.dt_raw = {raw};
    in.trap_raw = {200};  // lam = 1
    Mamba3RefState<double> state = Mamba3RefState<double>::zeros(in.dims);
    mamba3_scan_ref(in, state);
    EXPECT_NEAR(state.ssm[0] / (3 * dt), 1, 4e-16) << raw;
  }
}

TEST(ScanRefEnds, OneMinusLambdaKeepsItsDigits) {
  Mamba3RefInputs<double> in = one_number();
  in.trap_raw = {40};
  in.x = {0};
  Mamba3RefState<double> state = Mamba3RefState<double>::zeros(in.dims);
  state.v = {1};
  state.k = {1};
  mamba3_scan_ref(in, state);
  const double dt = std::numbers::ln2;
  EXPECT_NEAR(state.ssm[0] / (4.248354255291589e-18 * dt * std::exp(-dt)), 1, 1e-15);
}

TEST(ScanRefEnds, TheFloorBoundsTheDecay) {
  Mamba3RefInputs<double> in = one_number();
  in.x = {0};
  in.decay_raw = {-1e9};
  in.a_floor = 0.25;
  Mamba3RefState<double> state = Mamba3RefState<double>::zeros(in.dims);
  state.ssm = {1};
  mamba3_scan_ref(in, state);
  EXPECT_NEAR(state.ssm[0], std::exp(-0.25 * std::numbers::ln2), 1e-15);
}

TEST(ScanRefChecks, RefusesWrongSizes) {
  Mamba3RefState<double> state = Mamba3RefState<double>::zeros(one_number().dims);
  using Part = std::vector<double> Mamba3RefInputs<double>::*;
  for (const Part part : {&Mamba3RefInputs<double>::x, &Mamba3RefInputs<double>::in_b,
                          &Mamba3RefInputs<double>::trap_raw, &Mamba3RefInputs<double>::skip,
                          &Mamba3RefInputs<double>::out_c_bias, &Mamba3RefInputs<double>::mimo_o,
                          &Mamba3RefInputs<double>::out_norm}) {
    Mamba3RefInputs<double> in = one_number();
    (in.*part).push_back(0);
    EXPECT_THROW(mamba3_scan_ref(in, state), Error);
  }
  Mamba3RefInputs<double> in = one_number();
  in.tokens = -1;
  EXPECT_THROW(mamba3_scan_ref(in, state), Error);
  state.k.clear();
  EXPECT_THROW(mamba3_scan_ref(one_number(), state), Error);
}

TEST(ScanRefBf16, RoundsFactorsOnly) {
  const Mamba3Dims dims = awkward_dims()[1];
  Random random(14);
  Mamba3RefInputs<float> in = random_inputs(dims, 5, random);
  const Mamba3RefState<float> start = Mamba3RefState<float>::zeros(dims);
  Mamba3RefState<float> exact_state = start;
  const std::vector<float> exact = mamba3_scan_ref(in, exact_state);
  in.bf16_products = true;
  Mamba3RefState<float> state = start;
  const std::vector<float> rounded = mamba3_scan_ref(in, state);
  const double error = largest_error(std::span<const float>(rounded), std::span<const float>(exact),
                                     ErrorMetric::kRelative);
  EXPECT_GT(error, 1e-5);
  EXPECT_LT(error, 1e-2);
  EXPECT_EQ(state.k, exact_state.k);
  EXPECT_EQ(state.v, exact_state.v);
}

}  // namespace
}  // namespace mamba3
