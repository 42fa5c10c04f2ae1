// Random layers for the tests of the Mamba-3 ops: the oracle's inputs, and the same as in_proj rows
// and state slots with NaN wherever nothing may be read.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "ops/mamba3_common/mamba3_args.h"
#include "ops/mamba3_common/turns.h"
#include "ops/mamba3_scan/mamba3_scan_ref.h"

namespace mamba3::testing {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::vector<float> normal(std::int64_t count, float mean = 0, float deviation = 1) {
    std::normal_distribution<float> draw(mean, deviation);
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& v : out) v = draw(engine_);
    return out;
  }
  std::int64_t below(std::int64_t end) {
    return std::uniform_int_distribution<std::int64_t>(0, end - 1)(engine_);
  }

 private:
  std::mt19937_64 engine_;
};

// Parameters of one layer, and `tokens` tokens of one sequence.
inline Mamba3RefInputs<float> random_inputs(const Mamba3Dims& dims, std::int64_t tokens,
                                            Random& random) {
  const std::int64_t inner = dims.heads * dims.head_dim;
  const std::int64_t shared = dims.rank * dims.groups * dims.state;
  Mamba3RefInputs<float> in;
  in.dims = dims;
  in.a_floor = dims.a_floor;
  in.tokens = tokens;
  in.x = random.normal(tokens * inner);
  in.z = random.normal(tokens * inner);
  in.in_b = random.normal(tokens * shared, 0.2f);
  in.out_c = random.normal(tokens * shared, -0.1f);
  in.dt_raw = random.normal(tokens * dims.heads, -0.5f);
  in.decay_raw = random.normal(tokens * dims.heads, -1.0f, 2.0f);
  in.trap_raw = random.normal(tokens * dims.heads, 0, 2.0f);
  in.angle_raw = random.normal(tokens * dims.angle_columns(), 0, 2.0f);
  in.dt_bias = random.normal(dims.heads, -0.5f);
  in.skip = random.normal(dims.heads, 1);
  in.in_b_bias = random.normal(dims.heads * dims.rank * dims.state, 1, 0.5f);
  in.out_c_bias = random.normal(dims.heads * dims.rank * dims.state, 1, 0.5f);
  in.in_b_norm = random.normal(dims.state, 1, 0.3f);
  in.out_c_norm = random.normal(dims.state, 1, 0.3f);
  if (dims.mimo) {
    const float mean = 1.0f / static_cast<float>(dims.rank);
    in.mimo_x = random.normal(dims.rank * inner, mean, 0.3f);
    in.mimo_z = random.normal(dims.rank * inner, 1, 0.3f);
    in.mimo_o = random.normal(dims.rank * inner, mean, 0.3f);
  }
  if (dims.out_norm) in.out_norm = random.normal(inner, 1, 0.3f);
  return in;
}

inline Mamba3RefState<float> random_state(const Mamba3Dims& dims, Random& random) {
  Mamba3RefState<float> state;
  state.angle = random.normal(dims.heads * dims.angles);
  state.ssm = random.normal(dims.heads * dims.head_dim * dims.state);
  state.k = random.normal(dims.rank * dims.heads * dims.state);
  state.v = random.normal(dims.heads * dims.head_dim);
  return state;
}

inline std::vector<double> widen(const std::vector<float>& v) {
  return {v.begin(), v.end()};
}

inline Mamba3RefInputs<double> widen(const Mamba3RefInputs<float>& in) {
  Mamba3RefInputs<double> out;
  out.dims = in.dims;
  out.a_floor = in.a_floor;
  out.tokens = in.tokens;
  out.x = widen(in.x);
  out.z = widen(in.z);
  out.in_b = widen(in.in_b);
  out.out_c = widen(in.out_c);
  out.dt_raw = widen(in.dt_raw);
  out.decay_raw = widen(in.decay_raw);
  out.trap_raw = widen(in.trap_raw);
  out.angle_raw = widen(in.angle_raw);
  out.dt_bias = widen(in.dt_bias);
  out.skip = widen(in.skip);
  out.in_b_bias = widen(in.in_b_bias);
  out.out_c_bias = widen(in.out_c_bias);
  out.in_b_norm = widen(in.in_b_norm);
  out.out_c_norm = widen(in.out_c_norm);
  out.mimo_x = widen(in.mimo_x);
  out.mimo_z = widen(in.mimo_z);
  out.mimo_o = widen(in.mimo_o);
  out.out_norm = widen(in.out_norm);
  return out;
}

inline Mamba3RefState<double> widen(const Mamba3RefState<float>& state) {
  return {widen(state.angle), widen(state.ssm), widen(state.k), widen(state.v)};
}

inline Mamba3Params params_of(const Mamba3RefInputs<float>& in) {
  Mamba3Params params;
  const auto data = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
  params.dt_bias = data(in.dt_bias);
  params.skip = data(in.skip);
  params.in_b_bias = data(in.in_b_bias);
  params.out_c_bias = data(in.out_c_bias);
  params.in_b_norm = data(in.in_b_norm);
  params.out_c_norm = data(in.out_c_norm);
  params.mimo_x = data(in.mimo_x);
  params.mimo_z = data(in.mimo_z);
  params.mimo_o = data(in.mimo_o);
  params.out_norm = data(in.out_norm);
  return params;
}

// in_proj rows, `padding` NaNs after each.
struct Rows {
  std::int64_t stride = 0;
  std::vector<float> data;

  Rows(const Mamba3Dims& dims, std::int64_t rows, std::int64_t padding)
      : stride(2 * dims.heads * dims.head_dim + 2 * dims.rank * dims.groups * dims.state +
               3 * dims.heads + dims.angle_columns() + padding),
        data(static_cast<std::size_t>(rows * stride), kNan) {}

  // Token `token` of `in` becomes row `row`.
  void put(std::int64_t row, const Mamba3RefInputs<float>& in, std::int64_t token) {
    float* out = data.data() + row * stride;
    for (const auto* part : {&in.z, &in.x, &in.in_b, &in.out_c, &in.dt_raw, &in.decay_raw,
                             &in.trap_raw, &in.angle_raw}) {
      const std::int64_t count = static_cast<std::int64_t>(part->size()) / in.tokens;
      for (std::int64_t i = 0; i < count; ++i) *out++ = (*part)[token * count + i];
    }
  }
  Mamba3Columns columns(const Mamba3Dims& dims) const {
    return split_columns(data.data(), stride, dims);
  }
};

// State slots, `padding` elements of NaN (or a marker, for turns) after each part.
class Slots {
 public:
  static constexpr std::uint32_t kMarker = 0xdeadbeef;

  Slots(const Mamba3Dims& dims, std::int64_t slots, std::int64_t padding)
      : dims_(dims),
        turns_stride_(dims.heads * dims.angles + padding),
        ssm_stride_(dims.heads * dims.head_dim * dims.state + padding),
        k_stride_(dims.rank * dims.heads * dims.state + padding),
        v_stride_(dims.heads * dims.head_dim + padding),
        slots_(slots),
        turns(static_cast<std::size_t>(slots * turns_stride_), kMarker),
        ssm(static_cast<std::size_t>(slots * ssm_stride_), kNan),
        k(static_cast<std::size_t>(slots * k_stride_), kNan),
        v(static_cast<std::size_t>(slots * v_stride_), kNan) {}

  Mamba3States states() {
    Mamba3States out;
    out.turns = turns.data();
    out.ssm = ssm.data();
    out.k = k.data();
    out.v = v.data();
    out.slots = slots_;
    out.turns_stride = turns_stride_;
    out.ssm_stride = ssm_stride_;
    out.k_stride = k_stride_;
    out.v_stride = v_stride_;
    return out;
  }

  void put(std::int64_t slot, const Mamba3RefState<float>& state) {
    for (std::size_t i = 0; i < state.angle.size(); ++i) {
      turns[slot * turns_stride_ + i] = turns_of_radians(state.angle[i]);
    }
    std::copy(state.k.begin(), state.k.end(), k.begin() + slot * k_stride_);
    std::copy(state.v.begin(), state.v.end(), v.begin() + slot * v_stride_);
    for_each_ssm([&](std::int64_t canonical, std::int64_t ours) {
      ssm[slot * ssm_stride_ + ours] = state.ssm[canonical];
    });
  }

  Mamba3RefState<float> get(std::int64_t slot) const {
    Mamba3RefState<float> state = Mamba3RefState<float>::zeros(dims_);
    for (std::size_t i = 0; i < state.angle.size(); ++i) {
      state.angle[i] = static_cast<float>(radians_of_turns(turns[slot * turns_stride_ + i]));
    }
    const auto copy = [slot](const std::vector<float>& from, std::int64_t stride,
                             std::vector<float>& to) {
      std::copy_n(from.begin() + slot * stride, to.size(), to.begin());
    };
    copy(k, k_stride_, state.k);
    copy(v, v_stride_, state.v);
    for_each_ssm([&](std::int64_t canonical, std::int64_t ours) {
      state.ssm[canonical] = ssm[slot * ssm_stride_ + ours];
    });
    return state;
  }

  // Nothing was written between the slots.
  bool padding_is_untouched() const {
    return padding_of(turns, turns_stride_, dims_.heads * dims_.angles,
                      [](std::uint32_t u) { return u == kMarker; }) &&
           padding_of(ssm, ssm_stride_, dims_.heads * dims_.head_dim * dims_.state, is_nan) &&
           padding_of(k, k_stride_, dims_.rank * dims_.heads * dims_.state, is_nan) &&
           padding_of(v, v_stride_, dims_.heads * dims_.head_dim, is_nan);
  }

 private:
  static bool is_nan(float v) { return std::isnan(v); }

  template <class T, class Untouched>
  bool padding_of(const std::vector<T>& data, std::int64_t stride, std::int64_t used,
                  Untouched untouched) const {
    for (std::int64_t slot = 0; slot < slots_; ++slot) {
      for (std::int64_t i = used; i < stride; ++i) {
        if (!untouched(data[slot * stride + i])) return false;
      }
    }
    return true;
  }

  template <class Body>
  void for_each_ssm(Body body) const {
    const std::int64_t p = dims_.head_dim;
    const std::int64_t n = dims_.state;
    for (std::int64_t h = 0; h < dims_.heads; ++h) {
      for (std::int64_t i = 0; i < p; ++i) {
        for (std::int64_t j = 0; j < n; ++j) body((h * p + i) * n + j, (h * n + j) * p + i);
      }
    }
  }

  Mamba3Dims dims_;
  std::int64_t turns_stride_;
  std::int64_t ssm_stride_;
  std::int64_t k_stride_;
  std::int64_t v_stride_;
  std::int64_t slots_;

 public:
  std::vector<std::uint32_t> turns;  // [slot, h, s]
  std::vector<float> ssm;            // [slot, h, n, p]
  std::vector<float> k;              // [slot, r, h, n]
  std::vector<float> v;              // [slot, h, p]
};

// Every option at sizes that are no multiple of a vector, a few that are, and models' own.
inline std::vector<Mamba3Dims> awkward_dims() {
  std::vector<Mamba3Dims> out;
  const auto add = [&out](std::int64_t h, std::int64_t p, std::int64_t n, std::int64_t g,
                          std::int64_t r, std::int64_t s, bool mimo, bool out_norm,
                          AActivation act) {
    Mamba3Dims d;
    d.heads = h;
    d.head_dim = p;
    d.state = n;
    d.groups = g;
    d.rank = r;
    d.angles = s;
    d.mimo = mimo;
    d.out_norm = out_norm;
    d.a_activation = act;
    out.push_back(d);
  };
  constexpr auto kHeavy = AActivation::kHeavyTail;
  constexpr auto kSoft = AActivation::kSoftplus;
  add(2, 64, 128, 1, 1, 32, false, false, kHeavy);
  add(2, 64, 128, 1, 4, 32, true, false, kHeavy);
  add(1, 1, 1, 1, 1, 0, false, false, kHeavy);
  add(1, 1, 2, 1, 1, 1, true, true, kSoft);
  add(3, 5, 7, 3, 1, 3, false, true, kHeavy);
  add(4, 17, 33, 2, 1, 8, false, false, kSoft);
  add(2, 80, 18, 1, 1, 9, false, true, kHeavy);
  add(6, 20, 34, 3, 2, 8, true, false, kHeavy);
  add(2, 31, 22, 2, 3, 11, true, true, kSoft);
  add(1, 48, 16, 1, 5, 4, true, false, kHeavy);
  add(2, 9, 30, 1, 6, 15, true, true, kHeavy);
  add(2, 12, 10, 2, 7, 2, true, false, kSoft);
  add(3, 19, 26, 1, 8, 6, true, true, kHeavy);
  add(5, 112, 40, 5, 8, 20, true, false, kHeavy);
  // Rotations by fixed steps, and none; those of 64 x 64 as tensor cores take them.
  add(2, 64, 64, 1, 1, 16, false, false, kHeavy);
  out.back().fixed_steps = true;
  add(3, 20, 34, 3, 1, 17, false, true, kSoft);
  out.back().fixed_steps = true;
  add(2, 31, 22, 2, 3, 5, true, true, kHeavy);
  out.back().fixed_steps = true;
  add(2, 64, 64, 1, 4, 32, true, false, kHeavy);
  out.back().fixed_steps = true;
  add(2, 64, 64, 1, 1, 0, false, false, kHeavy);
  add(2, 20, 34, 1, 2, 0, true, true, kSoft);
  return out;
}

inline std::string describe(const Mamba3Dims& d) {
  return "h" + std::to_string(d.heads) + "_p" + std::to_string(d.head_dim) + "_n" +
         std::to_string(d.state) + "_g" + std::to_string(d.groups) + "_r" + std::to_string(d.rank) +
         "_s" + std::to_string(d.angles) + (d.fixed_steps ? "_fixed" : "") +
         (d.mimo ? "_mimo" : "") + (d.out_norm ? "_norm" : "") +
         (d.a_activation == AActivation::kSoftplus ? "_softplus" : "");
}

}  // namespace mamba3::testing
