// Runs mamba3_scan_backward on random sequences and keeps everything that it wrote, for the tests
// to compare.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/arena.h"
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
  Mamba3ParamGradients pointers() {
    return {dt_bias.data(),    skip.data(),   in_b_bias.data(), out_c_bias.data(), in_b_norm.data(),
            out_c_norm.data(), mimo_x.data(), mimo_z.data(),    mimo_o.data(),     out_norm.data()};
  }
  bool operator==(const ParamGradients& other) const {
    ParamGradients a = *this, b = other;
    const auto left = a.all(), right = b.all();
    return std::equal(left.begin(), left.end(), right.begin(),
                      [](const auto* x, const auto* y) { return same(*x, *y); });
  }
};

struct BackwardOptions {
  int threads = 1;
  std::vector<std::int64_t> which;  // sequences in the order in which they are packed; empty: all
};

class BackwardRunner {
 public:
  BackwardRunner(const BackwardCase& data, const BackwardOptions& options)
      : data_(data),
        ctx_({.threads = options.threads, .seed = 0, .log = {}}),
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
    std::vector<std::int64_t> bounds{0};
    for (const std::int64_t i : which_) bounds.push_back(bounds.back() + data_.inputs[i].tokens);
    const std::int64_t tokens = bounds.back();
    const std::int64_t inner = data_.dims.heads * data_.dims.head_dim;
    Rows rows(data_.dims, tokens, kPadding);
    Rows grad_rows(data_.dims, tokens, kPadding + 2);
    std::vector<float> grad_y(static_cast<std::size_t>(tokens * (inner + kPadding)), kNan);
    for (std::size_t i = 0; i < which_.size(); ++i) {
      for (std::int64_t row = bounds[i]; row < bounds[i + 1]; ++row) {
        rows.put(row, data_.inputs[which_[i]], row - bounds[i]);
        std::copy_n(data_.grad_y[which_[i]].begin() + (row - bounds[i]) * inner, inner,
                    grad_y.begin() + row * (inner + kPadding));
      }
    }
    const std::vector<float> rows_before = rows.data;
    const Slots states_before = states_;
    Mamba3ScanBackwardArgs args;
    args.dims = data_.dims;
    args.params = params_of(data_.inputs[0]);
    args.columns = rows.columns(data_.dims);
    args.cu_seqlens = bounds;
    args.slots = slots_;
    args.states = states_.states();
    args.grad_y = TensorView<const float, 2>(grad_y.data(), {tokens, inner}, {inner + kPadding, 1});
    args.grad_columns = split_column_gradients(grad_rows.data.data(), grad_rows.stride, data_.dims);
    args.grad_states = state_gradients();
    args.grad_params = params.pointers();
    const std::size_t bytes = poison_workspace(args);
    change(args);
    mamba3_scan_backward(args, ctx_);
    clean_ = clean_ && ctx_.workspace().peak_bytes() <= bytes + Arena::kAlignBytes;
    clean_ = clean_ && same(rows.data, rows_before) && same(states_.ssm, states_before.ssm) &&
             same(states_.k, states_before.k) && same(states_.v, states_before.v) &&
             states_.turns == states_before.turns && grads_.padding_is_untouched();
    std::vector<BackwardResult> out(which_.size());
    const std::int64_t width = grad_rows.stride - kPadding - 2;
    for (std::size_t i = 0; i < which_.size(); ++i) {
      for (std::int64_t row = bounds[i]; row < bounds[i + 1]; ++row) {
        const auto begin = grad_rows.data.begin() + row * grad_rows.stride;
        out[i].columns.insert(out[i].columns.end(), begin, begin + width);
        clean_ = clean_ && all_nan(begin + width, begin + grad_rows.stride);
      }
      out[i].state = grads_.get(slots_[i]);
      const auto angle = grad_angles_.begin() + slots_[i] * angle_stride_;
      out[i].state.angle.assign(angle, angle + angle_stride_ - kPadding);
      clean_ = clean_ && all_nan(angle + angle_stride_ - kPadding, angle + angle_stride_);
    }
    return out;
  }
  // Nothing outside was written, and no more workspace taken than the query says.
  bool clean() const { return clean_; }

 private:
  static constexpr std::int64_t kPadding = 3;
  using Iterator = std::vector<float>::const_iterator;

  static bool all_nan(Iterator begin, Iterator end) {
    return std::all_of(begin, end, [](float v) { return std::isnan(v); });
  }

  Mamba3StateGradients state_gradients() {
    const Mamba3States parts = grads_.states();
    Mamba3StateGradients out;
    out.angle = grad_angles_.data();
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
    std::memset(memory, 0xff, bytes);
    return bytes;
  }

  const BackwardCase& data_;
  Context ctx_;
  std::vector<std::int64_t> which_;
  std::vector<std::int32_t> slots_;
  Slots states_;
  Slots grads_;  // its turns are not used
  std::int64_t angle_stride_;
  std::vector<float> grad_angles_;  // [slot, h, s]
  bool clean_ = true;
};

}  // namespace mamba3::testing
