// The paths that models use, on a golden's tokens.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "core/check.h"
#include "core/mirror.h"
#include "engine/golden_run.h"
#include "ops/mamba3_common/turns.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3 {
namespace {

using Floats = std::vector<float>;

// A matrix as a checkpoint of the wanted precision would hold it.
struct Matrix {
  Matrix(const std::vector<double>& values, std::int64_t rows, Compute compute) {
    ref.shape = {rows, rows > 0 ? static_cast<std::int64_t>(values.size()) / rows : 0};
    if (compute == Compute::kBf16) {
      for (const double v : values) bf16.push_back(to_bf16(static_cast<float>(v)));
      ref.dtype = DType::kBf16;
      ref.data = reinterpret_cast<const std::byte*>(bf16.data());
    } else {
      f32.assign(values.begin(), values.end());
      ref.data = reinterpret_cast<const std::byte*>(f32.data());
    }
  }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  TensorRef ref;
  std::vector<Bf16> bf16;
  Floats f32;
};

// One golden's layer in fp32, and the states of its sequences.
class FastLayer {
 public:
  FastLayer(const Golden& golden, std::span<const Mamba3RefState<double>> start, Compute compute,
            LinearPath path, Context& ctx)
      : golden_(golden),
        compute_(compute),
        path_(path),
        ctx_(ctx),
        in_proj_(golden.at("param.in_proj.weight"), golden.projected(), compute),
        out_proj_(golden.at("param.out_proj.weight"), golden.width, compute) {
    copy_params();
    copy_states(start);
  }

  // in_proj's output for these rows, [rows, projected].
  Floats columns(const std::vector<std::int64_t>& rows) {
    if (golden_.mixer) return multiply(gather("in.u", golden_.width, rows), in_proj_);
    Floats out;
    for (const std::int64_t row : rows) {
      append(out, "in.z", golden_.inner(), row);
      append(out, "in.x", golden_.inner(), row);
      append(out, "in.B", golden_.shared(), row);
      append(out, "in.C", golden_.shared(), row);
      append(out, "in.dd_dt", golden_.dims.heads, row);
      append(out, "in.dd_A", golden_.dims.heads, row);
      append(out, "in.trap", golden_.dims.heads, row);
      append(out, "in.angle", golden_.dims.angles, row);
    }
    return out;
  }

  Floats step(const Floats& columns_of_rows, const std::vector<std::int32_t>& slots) {
    const auto rows = static_cast<std::int64_t>(slots.size());
    Floats y(static_cast<std::size_t>(rows * golden_.inner()));
    const Mirror<const float> columns(columns_of_rows, ctx_);
    const Mirror<const std::int32_t> slots_there(slots, ctx_);
    const Mirror<float> y_there(y, ctx_);
    mamba3_step(
        {golden_.dims, params_, split_columns(columns.data(), golden_.projected(), golden_.dims),
         slots_there.span(), states_,
         TensorView<float, 2>(y_there.data(), {rows, golden_.inner()})},
        ctx_);
    y_there.read_back();
    return golden_.mixer ? multiply(y, out_proj_) : y;
  }

  Floats scan(const Floats& columns_of_rows, const std::vector<std::int64_t>& cu_seqlens,
              const std::vector<std::int32_t>& slots) {
    const std::int64_t rows = cu_seqlens.back();
    Floats y(static_cast<std::size_t>(rows * golden_.inner()));
    const Mirror<const float> columns(columns_of_rows, ctx_);
    const Mirror<const std::int64_t> cu_seqlens_there(cu_seqlens, ctx_);
    const Mirror<const std::int32_t> slots_there(slots, ctx_);
    const Mirror<float> y_there(y, ctx_);
    mamba3_scan(
        {golden_.dims, params_, split_columns(columns.data(), golden_.projected(), golden_.dims),
         cu_seqlens_there.span(), slots_there.span(), states_,
         TensorView<float, 2>(y_there.data(), {rows, golden_.inner()}), compute_ == Compute::kBf16},
        ctx_);
    y_there.read_back();
    return golden_.mixer ? multiply(y, out_proj_) : y;
  }

  // Before state(): what the last step or scan has left.
  void read_states_back() const {
    turns_there_->read_back();
    ssm_there_->read_back();
    k_there_->read_back();
    v_there_->read_back();
  }

  Mamba3RefState<double> state(std::int64_t slot) const {
    const Mamba3Dims& d = golden_.dims;
    Mamba3RefState<double> out = Mamba3RefState<double>::zeros(d);
    for (std::size_t i = 0; i < out.angle.size(); ++i) {
      out.angle[i] = radians_of_turns(turns_[slot * states_.turns_stride + i]);
    }
    std::copy_n(k_.begin() + slot * states_.k_stride, out.k.size(), out.k.begin());
    std::copy_n(v_.begin() + slot * states_.v_stride, out.v.size(), out.v.begin());
    for_each_ssm([&](std::int64_t canonical, std::int64_t ours) {
      out.ssm[canonical] = ssm_[slot * states_.ssm_stride + ours];
    });
    return out;
  }

 private:
  void append(Floats& out, const char* name, std::int64_t width, std::int64_t row) const {
    const auto from = golden_.at(name).begin() + row * width;
    out.insert(out.end(), from, from + width);
  }

  Floats gather(const char* name, std::int64_t width, const std::vector<std::int64_t>& rows) const {
    Floats out;
    for (const std::int64_t row : rows) append(out, name, width, row);
    return out;
  }

  Floats multiply(const Floats& x, const Matrix& w) {
    const std::int64_t n = w.ref.shape[0];
    const std::int64_t k = w.ref.shape[1];
    const std::int64_t rows = static_cast<std::int64_t>(x.size()) / k;
    Floats y(static_cast<std::size_t>(rows * n));
    const Mirror<const float> x_there(x, ctx_);
    const Mirror<const std::byte> w_there(
        std::span(w.ref.data, static_cast<std::size_t>(w.ref.bytes())), ctx_);
    const Mirror<float> y_there(y, ctx_);
    linear({TensorView<const float, 2>(x_there.data(), {rows, k}),
            {w_there.data(), w.ref.dtype, w.ref.shape},
            TensorView<float, 2>(y_there.data(), {rows, n}),
            compute_,
            path_},
           ctx_);
    y_there.read_back();
    return y;
  }

  void copy_params() {
    constexpr const char* kNames[] = {
        "dt_bias",       "D",      "B_bias", "C_bias", "B_norm.weight",
        "C_norm.weight", "mimo_x", "mimo_z", "mimo_o", "norm.weight"};
    const float** const kTo[] = {&params_.dt_bias,    &params_.skip,      &params_.in_b_bias,
                                 &params_.out_c_bias, &params_.in_b_norm, &params_.out_c_norm,
                                 &params_.mimo_x,     &params_.mimo_z,    &params_.mimo_o,
                                 &params_.out_norm};
    for (std::size_t i = 0; i < std::size(kNames); ++i) {
      const std::vector<double>& from = golden_.at(std::string("param.") + kNames[i]);
      if (from.empty()) continue;
      small_.emplace_back(from.begin(), from.end());
      *kTo[i] = small_there_.emplace_back(std::span<const float>(small_.back()), ctx_).data();
    }
  }

  void copy_states(std::span<const Mamba3RefState<double>> start) {
    const Mamba3Dims& d = golden_.dims;
    states_.slots = static_cast<std::int64_t>(start.size());
    states_.turns_stride = d.heads * d.angles;
    states_.ssm_stride = golden_.inner() * d.state;
    states_.k_stride = d.rank * d.heads * d.state;
    states_.v_stride = golden_.inner();
    ssm_.resize(static_cast<std::size_t>(states_.slots * states_.ssm_stride));
    for (std::int64_t slot = 0; slot < states_.slots; ++slot) {
      const Mamba3RefState<double>& from = start[slot];
      for (const double angle : from.angle) {
        check_input(std::isfinite(angle), golden_.file, " has the angle ", angle,
                    " in a state; expected a finite number");
        turns_.push_back(turns_of_radians(angle));
      }
      k_.insert(k_.end(), from.k.begin(), from.k.end());
      v_.insert(v_.end(), from.v.begin(), from.v.end());
      for_each_ssm([&](std::int64_t canonical, std::int64_t ours) {
        ssm_[slot * states_.ssm_stride + ours] = static_cast<float>(from.ssm[canonical]);
      });
    }
    states_.turns = turns_there_.emplace(turns_, ctx_).data();
    states_.ssm = ssm_there_.emplace(ssm_, ctx_).data();
    states_.k = k_there_.emplace(k_, ctx_).data();
    states_.v = v_there_.emplace(v_, ctx_).data();
  }

  // [h, p, n] of the canonical tuple against [h, n, p] of the ops.
  template <class Body>
  void for_each_ssm(Body body) const {
    const std::int64_t p = golden_.dims.head_dim;
    const std::int64_t n = golden_.dims.state;
    for (std::int64_t h = 0; h < golden_.dims.heads; ++h) {
      for (std::int64_t i = 0; i < p; ++i) {
        for (std::int64_t j = 0; j < n; ++j) body((h * p + i) * n + j, (h * n + j) * p + i);
      }
    }
  }

  const Golden& golden_;
  Compute compute_;
  LinearPath path_;
  Context& ctx_;
  Matrix in_proj_;
  Matrix out_proj_;
  std::vector<Floats> small_;
  std::vector<Mirror<const float>> small_there_;  // what params_ points to
  Mamba3Params params_;
  std::vector<std::uint32_t> turns_;
  Floats ssm_;
  Floats k_;
  Floats v_;
  std::optional<Mirror<std::uint32_t>> turns_there_;
  std::optional<Mirror<float>> ssm_there_, k_there_, v_there_;
  Mamba3States states_;
};

std::int64_t all_rows(std::span<const GoldenRange> ranges) {
  std::int64_t rows = 0;
  for (const GoldenRange& range : ranges) rows += range.end - range.begin;
  return rows;
}

void take_states(const FastLayer& layer, std::size_t count, GoldenPart& out) {
  layer.read_states_back();
  for (std::size_t i = 0; i < count; ++i) {
    out.states.push_back(layer.state(static_cast<std::int64_t>(i)));
  }
}

}  // namespace

GoldenPart run_step(const Golden& golden, std::span<const GoldenRange> ranges,
                    std::span<const Mamba3RefState<double>> start, Compute compute, Context& ctx) {
  FastLayer layer(golden, start, compute, LinearPath::kSkinny, ctx);
  const std::int64_t width = golden.out_width();
  GoldenPart out;
  out.y.resize(static_cast<std::size_t>(all_rows(ranges) * width));
  for (std::int64_t t = 0;; ++t) {
    std::vector<std::int64_t> rows;
    std::vector<std::int64_t> to;
    std::vector<std::int32_t> slots;
    std::int64_t before = 0;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      if (ranges[i].begin + t < ranges[i].end) {
        rows.push_back(ranges[i].begin + t);
        to.push_back(before + t);
        slots.push_back(static_cast<std::int32_t>(i));
      }
      before += ranges[i].end - ranges[i].begin;
    }
    if (rows.empty()) break;
    const Floats y = layer.step(layer.columns(rows), slots);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(y.begin() + static_cast<std::int64_t>(i) * width, width,
                  out.y.begin() + to[i] * width);
    }
  }
  take_states(layer, ranges.size(), out);
  return out;
}

GoldenPart run_scan(const Golden& golden, std::span<const GoldenRange> ranges,
                    std::span<const Mamba3RefState<double>> start, Compute compute, Context& ctx) {
  FastLayer layer(golden, start, compute, LinearPath::kGemm, ctx);
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> cu_seqlens{0};
  for (const GoldenRange& range : ranges) {
    for (std::int64_t row = range.begin; row < range.end; ++row) rows.push_back(row);
    cu_seqlens.push_back(static_cast<std::int64_t>(rows.size()));
  }
  std::vector<std::int32_t> slots(ranges.size());
  std::iota(slots.begin(), slots.end(), 0);
  GoldenPart out;
  if (!rows.empty()) {
    const Floats y = layer.scan(layer.columns(rows), cu_seqlens, slots);
    out.y.assign(y.begin(), y.end());
  }
  take_states(layer, ranges.size(), out);
  return out;
}

}  // namespace mamba3
