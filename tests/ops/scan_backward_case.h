// Runs mamba3_scan_backward on random sequences and keeps everything that it wrote, for the tests
// to compare.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/arena.h"
#include "core/mirror.h"
#include "gpu_case.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward_ref.h"
#include "scan_case.h"

namespace mamba3::testing {

// Sequences of one layer, and the gradients of what a scan makes of them.
struct BackwardCase : ScanCase {
  std::vector<std::vector<float>> grad_y;          // [t, h * p] each
  std::vector<Mamba3RefState<float>> grad_states;  // after the last token

  BackwardCase(const Mamba3Dims& dims_in, const std::vector<std::int64_t>& lengths,
               std::uint64_t seed)
      : ScanCase(dims_in, lengths, seed) {
    Random random(seed + 1000);
    for (const auto& in : inputs) {
      grad_y.push_back(random.normal(std::ssize(in.x)));
      grad_states.push_back(random_state(dims, random));
    }
  }
};

// A sequence with strong and weak decays, huge steps and rows that are nearly zero.
inline BackwardCase extreme_case(const Mamba3Dims& dims) {
  BackwardCase data(dims, {150}, 58);
  Mamba3RefInputs<float>& in = data.inputs[0];
  Random random(59);
  const auto draw = [&](std::vector<float>& to, const std::vector<float>& from) {
    for (float& v : to) {
      if (random.below(3) == 0) v = from[random.below(std::ssize(from))];
    }
  };
  draw(in.dt_raw, {-800, -90, -30, 0, 3, 30});
  draw(in.decay_raw, {-1e6f, -2e4f, -1, 0, 50, 1000});
  draw(in.trap_raw, {-100, -30, 0, 30, 100});
  draw(in.angle_raw, {-1e4f, -8, 0, 0.3f, 8, 50});
  for (float& v : in.in_b) v *= random.below(9) == 0 ? 1e-10f : 1.0f;
  for (float& v : in.out_c) v *= random.below(9) == 0 ? 1e10f : 1.0f;
  return data;
}

// One sequence after a run.
struct BackwardResult {
  std::vector<float> columns;  // [t, e]
  Mamba3RefState<float> state;
};

inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
inline bool operator==(const BackwardResult& a, const BackwardResult& b) {
  return same(a.columns, b.columns) && same(a.state.angle, b.state.angle) &&
         same(a.state.ssm, b.state.ssm) && same(a.state.k, b.state.k) && same(a.state.v, b.state.v);
}

// The gradients of a layer's parameters.
struct ParamGradients {
  std::vector<float> dt_bias, skip, in_b_bias, out_c_bias, in_b_norm, out_c_norm, mimo_x, mimo_z,
      mimo_o, out_norm;

  explicit ParamGradients(const Mamba3Dims& d) {
    const auto size = [](std::int64_t count) { return std::vector<float>(count); };
    dt_bias = skip = size(d.heads);
    in_b_bias = out_c_bias = size(d.heads * d.rank * d.state);
    in_b_norm = out_c_norm = size(d.state);
    mimo_x = mimo_z = mimo_o = size(d.mimo ? d.heads * d.rank * d.head_dim : 0);
    out_norm = size(d.out_norm ? d.heads * d.head_dim : 0);
  }
  std::vector<std::vector<float>*> all() {
    return {&dt_bias,    &skip,   &in_b_bias, &out_c_bias, &in_b_norm,
            &out_c_norm, &mimo_x, &mimo_z,    &mimo_o,     &out_norm};
  }
  bool operator==(const ParamGradients& other) const {
    ParamGradients a = *this, b = other;
    const auto left = a.all(), right = b.all();
    return std::equal(left.begin(), left.end(), right.begin(),
                      [](const auto* x, const auto* y) { return same(*x, *y); });
  }
};

// How the numbers are given that a GPU also takes in bf16.
enum class BackwardTypes { kF32, kBf16Inputs, kBf16 };

struct BackwardOptions {
  int threads = 1;
  std::vector<std::int64_t> which;  // sequences in the order in which they are packed; empty: all
  bool gpu = false;
  // Of z, x and grad_y, or of the gradients of columns, too.
  BackwardTypes types = BackwardTypes::kF32;
  std::int64_t row_multiple = 1;  // rows begin at a multiple of so many elements
};

class BackwardRunner {
 public:
  BackwardRunner(const BackwardCase& data, const BackwardOptions& options)
      : data_(data),
        types_(options.types),
        row_multiple_(options.row_multiple),
        row_width_(Rows(data.dims, 0, 0).stride),
        inner_(data.dims.heads * data.dims.head_dim),
        ctx_(options.gpu ? on_gpu() : with_threads(options.threads)),
        which_(options.which),
        states_(data.dims, std::ssize(data.inputs) + 1, kPadding),
        grads_(data.dims, std::ssize(data.inputs) + 1, kPadding),
        angle_stride_(data.dims.heads * data.dims.angles + kPadding),
        grad_angles_((data.inputs.size() + 1) * angle_stride_, kNan) {
    if (which_.empty()) {
      which_.resize(data.inputs.size());
      std::iota(which_.begin(), which_.end(), 0);
    }
    // Slots in the opposite order, one left out.
    for (const std::int64_t i : which_) {
      const auto slot = static_cast<std::int32_t>(std::ssize(data.inputs) - i);
      slots_.push_back(slot);
      states_.put(slot, data.starts[i]);
      grads_.put(slot, data.grad_states[i]);
      std::copy(data.grad_states[i].angle.begin(), data.grad_states[i].angle.end(),
                grad_angles_.begin() + slot * angle_stride_);
    }
  }

  // Adds to `params`; `change` is applied to the arguments before the call.
  std::vector<BackwardResult> run(ParamGradients& params) {
    return run(params, [](Mamba3ScanBackwardArgs&) {});
  }
  template <class Change>
  std::vector<BackwardResult> run(ParamGradients& params, Change change) {
    bounds_.assign(1, 0);
    for (const std::int64_t i : which_) bounds_.push_back(bounds_.back() + data_.inputs[i].tokens);
    Rows rows(data_.dims, bounds_.back(), padded(row_width_, kPadding) - row_width_);
    Rows grad_rows(data_.dims, bounds_.back(), padded(row_width_, kPadding + 2) - row_width_);
    std::vector<float> grad_y(static_cast<std::size_t>(bounds_.back() * y_stride()), kNan);
    for (std::size_t i = 0; i < which_.size(); ++i) {
      for (std::int64_t row = bounds_[i]; row < bounds_[i + 1]; ++row) {
        rows.put(row, data_.inputs[which_[i]], row - bounds_[i]);
        std::copy_n(data_.grad_y[which_[i]].begin() + (row - bounds_[i]) * inner_, inner_,
                    grad_y.begin() + row * y_stride());
      }
    }
    const std::vector<float> rows_before = rows.data;
    const Slots states_before = states_;
    call(rows, grad_rows, grad_y, params, change);
    clean_ = clean_ && same(rows.data, rows_before) && same(states_.ssm, states_before.ssm) &&
             same(states_.k, states_before.k) && same(states_.v, states_before.v) &&
             states_.turns == states_before.turns && grads_.padding_is_untouched();
    return results(grad_rows);
  }
  // Nothing outside was written, and no more workspace taken than the query says.
  bool clean() const { return clean_; }

 private:
  static constexpr std::int64_t kPadding = 3, kZeroColumns = 2;
  using Iterator = std::vector<float>::const_iterator;

  static bool all_nan(Iterator begin, Iterator end) {
    return std::all_of(begin, end, [](float v) { return std::isnan(v); });
  }
  std::int64_t padded(std::int64_t width, std::int64_t padding) const {
    return (width + padding + row_multiple_ - 1) / row_multiple_ * row_multiple_;
  }
  std::int64_t y_stride() const { return padded(inner_, kPadding); }
  std::int64_t tokens() const { return bounds_.back(); }

  // Slots on the device of the Context.
  struct DeviceSlots {
    Mirror<std::uint32_t> turns;
    Mirror<float> ssm, k, v;

    DeviceSlots(Context& ctx, Slots& slots)
        : turns(slots.turns, ctx), ssm(slots.ssm, ctx), k(slots.k, ctx), v(slots.v, ctx) {}
    Mamba3States states(Slots& slots) {
      Mamba3States out = slots.states();
      out.turns = turns.data();
      out.ssm = ssm.data();
      out.k = k.data();
      out.v = v.data();
      return out;
    }
    void read_back() {
      turns.read_back();
      ssm.read_back();
      k.read_back();
      v.read_back();
    }
  };

  // The gradients of parameters, likewise.
  struct DeviceParams {
    std::vector<std::unique_ptr<Mirror<float>>> parts;

    DeviceParams(Context& ctx, ParamGradients& params) {
      for (auto* part : params.all()) parts.push_back(std::make_unique<Mirror<float>>(*part, ctx));
    }
    Mamba3ParamGradients pointers() {
      const auto at = [&](std::size_t i) { return parts[i]->data(); };
      return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9)};
    }
  };

  // What is given in bf16, its rows as far apart as the others'.
  struct NarrowRows {
    std::vector<Bf16> in, y, out;
    Mirror<Bf16> in_at, y_at, out_at;

    NarrowRows(Context& ctx, const std::vector<float>& rows, const std::vector<float>& grad_y,
               std::size_t gradients)
        : in(narrow(rows)),
          y(narrow(grad_y)),
          out(gradients, to_bf16(kNan)),
          in_at(in, ctx),
          y_at(y, ctx),
          out_at(out, ctx) {}
    static std::vector<Bf16> narrow(const std::vector<float>& from) {
      std::vector<Bf16> to;
      for (const float v : from) to.push_back(to_bf16(v));
      return to;
    }
  };

  template <class Change>
  void call(Rows& rows, Rows& grad_rows, std::vector<float>& grad_y, ParamGradients& params,
            Change change) {
    Mirror<float> rows_at(rows.data, ctx_), grad_rows_at(grad_rows.data, ctx_);
    Mirror<float> grad_y_at(grad_y, ctx_), angles_at(grad_angles_, ctx_);
    const Mirror<const std::int64_t> bounds_at(bounds_, ctx_);
    const Mirror<const std::int32_t> slots_at(slots_, ctx_);
    DeviceSlots states_at(ctx_, states_), grads_at(ctx_, grads_);
    DeviceParams params_at(ctx_, params);
    Mamba3ScanBackwardArgs args;
    args.dims = data_.dims;
    std::unique_ptr<GpuParams> layer;
    if (ctx_.gpu()) layer = std::make_unique<GpuParams>(ctx_, data_.inputs[0]);
    args.params = layer ? layer->params : params_of(data_.inputs[0]);
    args.columns = split_columns(rows_at.data(), rows.stride, data_.dims);
    args.cu_seqlens = bounds_at.span();
    args.slots = slots_at.span();
    args.states = states_at.states(states_);
    args.grad_y = TensorView<const float, 2>(grad_y_at.data(), {tokens(), inner_}, {y_stride(), 1});
    args.grad_columns = split_column_gradients(grad_rows_at.data(), grad_rows.stride, data_.dims);
    args.grad_states = state_gradients(grads_at.states(grads_), angles_at.data());
    args.grad_params = params_at.pointers();
    std::unique_ptr<NarrowRows> narrow;
    if (types_ != BackwardTypes::kF32) {
      narrow = std::make_unique<NarrowRows>(ctx_, rows.data, grad_y, grad_rows.data.size());
      give_bf16(*narrow, rows.stride, grad_rows.stride, args);
    }
    const std::size_t bytes = poison_workspace(args);
    change(args);
    mamba3_scan_backward(args, ctx_);
    clean_ = clean_ && ctx_.workspace().peak_bytes() <= bytes + Arena::kAlignBytes;
    rows_at.read_back();
    grad_rows_at.read_back();
    angles_at.read_back();
    states_at.read_back();
    grads_at.read_back();
    for (const auto& part : params_at.parts) part->read_back();
    if (types_ != BackwardTypes::kBf16) return;
    narrow->out_at.read_back();
    for (std::size_t i = 0; i < narrow->out.size(); ++i) {
      grad_rows.data[i] = to_float(narrow->out[i]);
    }
  }

  void give_bf16(NarrowRows& narrow, std::int64_t stride, std::int64_t grad_stride,
                 Mamba3ScanBackwardArgs& args) const {
    args.bf16_products = true;
    args.columns.z = args.columns.x = nullptr;
    args.columns.z_bf16 = narrow.in_at.data();
    args.columns.x_bf16 = narrow.in_at.data() + inner_;
    args.columns.zx_stride = stride;
    args.grad_y =
        TensorView<const Bf16, 2>(narrow.y_at.data(), {tokens(), inner_}, {y_stride(), 1});
    if (types_ != BackwardTypes::kBf16) return;
    args.grad_columns = {};
    args.grad_columns.row_stride = grad_stride;
    args.grad_columns.rows_bf16 = narrow.out_at.data();
    args.grad_columns.zero_columns = kZeroColumns;
  }

  std::vector<BackwardResult> results(const Rows& grad_rows) {
    std::vector<BackwardResult> out(which_.size());
    const std::int64_t width = row_width_;
    for (std::size_t i = 0; i < which_.size(); ++i) {
      for (std::int64_t row = bounds_[i]; row < bounds_[i + 1]; ++row) {
        const auto begin = grad_rows.data.begin() + row * grad_rows.stride;
        out[i].columns.insert(out[i].columns.end(), begin, begin + width);
        const std::int64_t zeros = types_ == BackwardTypes::kBf16 ? kZeroColumns : 0;
        clean_ = clean_ && std::count(begin + width, begin + width + zeros, 0.0f) == zeros &&
                 all_nan(begin + width + zeros, begin + grad_rows.stride);
      }
      out[i].state = grads_.get(slots_[i]);
      const auto angle = grad_angles_.begin() + slots_[i] * angle_stride_;
      out[i].state.angle.assign(angle, angle + angle_stride_ - kPadding);
      clean_ = clean_ && all_nan(angle + angle_stride_ - kPadding, angle + angle_stride_);
    }
    return out;
  }

  Mamba3StateGradients state_gradients(const Mamba3States& parts, float* angle) const {
    Mamba3StateGradients out;
    out.angle = angle;
    out.ssm = parts.ssm;
    out.k = parts.k;
    out.v = parts.v;
    out.slots = parts.slots;
    out.angle_stride = angle_stride_;
    out.ssm_stride = parts.ssm_stride;
    out.k_stride = parts.k_stride;
    out.v_stride = parts.v_stride;
    return out;
  }

  // The workspace holds NaNs before the call.
  std::size_t poison_workspace(const Mamba3ScanBackwardArgs& args) {
    const std::size_t bytes = mamba3_scan_backward_workspace_bytes(args, ctx_);
    ArenaScope scope(ctx_.workspace());
    auto* memory = scope.allocate<std::byte>(static_cast<std::int64_t>(bytes));
    if (ctx_.gpu()) {
      const std::vector<std::byte> ones(bytes, std::byte{0xff});
      if (bytes > 0) ctx_.gpu()->copy_in(memory, ones.data(), bytes);
    } else {
      std::memset(memory, 0xff, bytes);
    }
    return bytes;
  }

  const BackwardCase& data_;
  BackwardTypes types_;
  std::int64_t row_multiple_;
  std::int64_t row_width_;
  std::int64_t inner_;
  Context ctx_;
  std::vector<std::int64_t> which_;
  std::vector<std::int64_t> bounds_;
  std::vector<std::int32_t> slots_;
  Slots states_;
  Slots grads_;  // its turns are not used
  std::int64_t angle_stride_;
  std::vector<float> grad_angles_;  // [slot, h, s]
  bool clean_ = true;
};

}  // namespace mamba3::testing
