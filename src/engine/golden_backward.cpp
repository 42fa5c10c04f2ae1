// The backward pass of the scan on a golden's tokens.
#include <optional>

#include "core/mirror.h"
#include "engine/golden_gradients.h"
#include "engine/golden_inputs.h"
#include "ops/mamba3_common/turns.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

namespace mamba3 {
namespace {

using Floats = std::vector<float>;

// One part of all states, a slot for each sequence.
struct Slots {
  explicit Slots(const Mamba3Dims& d, std::int64_t slots)
      : angles(d.heads * d.angles),
        matrix(d.heads * d.head_dim * d.state),
        keys(d.rank * d.heads * d.state),
        values(d.heads * d.head_dim),
        ssm(static_cast<std::size_t>(slots * matrix)),
        k(static_cast<std::size_t>(slots * keys)),
        v(static_cast<std::size_t>(slots * values)) {}

  std::int64_t angles, matrix, keys, values;  // elements of one slot
  Floats ssm, k, v;
};

// The same where the ops find it.
struct SlotsThere {
  SlotsThere(Slots& slots, const Context& ctx)
      : ssm(slots.ssm, ctx), k(slots.k, ctx), v(slots.v, ctx) {}
  void read_back() const {
    ssm.read_back();
    k.read_back();
    v.read_back();
  }

  Mirror<float> ssm, k, v;
};

// Gradients of parameters there, from zeros.
struct ParamsThere {
  ParamsThere(Mamba3RefInputs<float>& sums, const Context& ctx) {
    for (Floats* part :
         {&sums.dt_bias, &sums.skip, &sums.in_b_bias, &sums.out_c_bias, &sums.in_b_norm,
          &sums.out_c_norm, &sums.mimo_x, &sums.mimo_z, &sums.mimo_o, &sums.out_norm}) {
      std::fill(part->begin(), part->end(), 0.0f);
      parts.emplace_back(*part, ctx);
    }
  }
  Mamba3ParamGradients gradients() const {
    const auto at = [this](std::size_t i) { return parts[i].data(); };
    return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9)};
  }
  void read_back() const {
    for (const Mirror<float>& part : parts) part.read_back();
  }

  std::vector<Mirror<float>> parts;
};

class OpGradients {
 public:
  OpGradients(const Golden& golden, Context& ctx)
      : golden_(golden), d_(golden.dims), ctx_(ctx), in_(layer_of<float>(golden)) {
    take_tokens(golden_, {0, golden_.bounds.back()}, false, in_);
    for (std::int64_t i = 0; i < golden_.sequences(); ++i) {
      slots_.push_back(static_cast<std::int32_t>(i));
    }
    bounds_there_.emplace(golden_.bounds, ctx_);
    slots_there_.emplace(slots_, ctx_);
    for (const Floats* part :
         {&in_.dt_bias, &in_.skip, &in_.in_b_bias, &in_.out_c_bias, &in_.in_b_norm, &in_.out_c_norm,
          &in_.mimo_x, &in_.mimo_z, &in_.mimo_o, &in_.out_norm}) {
      params_there_.emplace_back(*part, ctx_);
    }
  }

  GoldenGradients run() {
    const Floats rows = rows_of_columns();
    Floats grad_y = cast<float>(std::span(golden_.at("cot.y")));
    Slots start = states("state0");
    for (const std::int64_t i : slots_) {
      for (const double angle : golden_state(golden_, "state0", i).angle) {
        turns_.push_back(turns_of_radians(angle));
      }
    }
    if (golden_.mixer) grad_y = out_proj_backward(rows, start, grad_y);
    backward(rows, start, grad_y);
    return std::move(out_);
  }

 private:
  std::int64_t sequences() const { return golden_.sequences(); }
  std::int64_t tokens() const { return golden_.bounds.back(); }

  Floats rows_of_columns() const {
    Floats rows;
    for (std::int64_t t = 0; t < tokens(); ++t) {
      for (const auto* part : {&in_.z, &in_.x, &in_.in_b, &in_.out_c, &in_.dt_raw, &in_.decay_raw,
                               &in_.trap_raw, &in_.angle_raw}) {
        const std::int64_t width = std::ssize(*part) / tokens();
        rows.insert(rows.end(), part->begin() + t * width, part->begin() + (t + 1) * width);
      }
    }
    return rows;
  }

  // [h, p, n] of the file against [h, n, p] of the ops.
  template <class Body>
  void for_each_ssm(Body body) const {
    const std::int64_t p = d_.head_dim;
    const std::int64_t n = d_.state;
    for (std::int64_t h = 0; h < d_.heads; ++h) {
      for (std::int64_t i = 0; i < p; ++i) {
        for (std::int64_t j = 0; j < n; ++j) body((h * p + i) * n + j, (h * n + j) * p + i);
      }
    }
  }

  Slots states(const std::string& prefix) const {
    Slots out(d_, sequences());
    for (std::int64_t i = 0; i < sequences(); ++i) {
      const Mamba3RefState<double> state = golden_state(golden_, prefix, i);
      std::copy(state.k.begin(), state.k.end(), out.k.begin() + i * out.keys);
      std::copy(state.v.begin(), state.v.end(), out.v.begin() + i * out.values);
      for_each_ssm([&](std::int64_t file, std::int64_t ours) {
        out.ssm[i * out.matrix + ours] = static_cast<float>(state.ssm[file]);
      });
    }
    return out;
  }

  Mamba3States view(const Slots& slots, const SlotsThere& there, std::uint32_t* turns) const {
    Mamba3States out;
    out.turns = turns;
    out.ssm = there.ssm.data();
    out.k = there.k.data();
    out.v = there.v.data();
    out.slots = sequences();
    out.turns_stride = slots.angles;
    out.ssm_stride = slots.matrix;
    out.k_stride = slots.keys;
    out.v_stride = slots.values;
    return out;
  }

  Mamba3Params params() const {
    const auto at = [this](std::size_t i) {
      return params_there_[i].span().empty() ? nullptr : params_there_[i].data();
    };
    return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9)};
  }

  Floats out_proj_backward(const Floats& rows, Slots start, const Floats& grad_out) {
    std::vector<std::uint32_t> turns = turns_;
    Floats y(static_cast<std::size_t>(tokens() * golden_.inner()));
    const Mirror<const float> rows_there(rows, ctx_);
    const Mirror<std::uint32_t> turns_there(turns, ctx_);
    const SlotsThere start_there(start, ctx_);
    const Mirror<float> y_there(y, ctx_);
    Mamba3ScanArgs args;
    args.dims = d_;
    args.params = params();
    args.columns = split_columns(rows_there.data(), golden_.projected(), d_);
    args.cu_seqlens = bounds_there_->span();
    args.slots = slots_there_->span();
    args.states = view(start, start_there, turns_there.data());
    args.y = TensorView<float, 2>(y_there.data(), {tokens(), golden_.inner()});
    mamba3_scan(args, ctx_);
    y_there.read_back();
    return linear_backward(y, cast<float>(std::span(golden_.at("param.out_proj.weight"))), grad_out,
                           golden_.inner(), out_["param.out_proj.weight"]);
  }

  void backward(const Floats& rows, Slots& start, const Floats& grad_y) {
    Floats grad_rows(rows.size());
    Slots grads = states("cot.state1");
    Floats angles;
    for (const std::int64_t i : slots_) {
      const auto state = golden_state(golden_, "cot.state1", i);
      angles.insert(angles.end(), state.angle.begin(), state.angle.end());
    }
    Mamba3RefInputs<float> sums = in_;
    const Mirror<const float> rows_there(rows, ctx_), grad_y_there(grad_y, ctx_);
    const Mirror<float> grad_rows_there(grad_rows, ctx_), angles_there(angles, ctx_);
    const Mirror<std::uint32_t> turns_there(turns_, ctx_);
    const SlotsThere start_there(start, ctx_), grads_there(grads, ctx_);
    const ParamsThere sums_there(sums, ctx_);
    Mamba3ScanBackwardArgs args;
    args.dims = d_;
    args.params = params();
    args.columns = split_columns(rows_there.data(), golden_.projected(), d_);
    args.cu_seqlens = bounds_there_->span();
    args.slots = slots_there_->span();
    args.states = view(start, start_there, turns_there.data());
    args.grad_y = TensorView<const float, 2>(grad_y_there.data(), {tokens(), golden_.inner()});
    args.grad_columns = split_column_gradients(grad_rows_there.data(), golden_.projected(), d_);
    const Mamba3States parts = view(grads, grads_there, nullptr);
    args.grad_states = {angles_there.data(), parts.ssm,          parts.k,          parts.v,
                        parts.slots,         parts.turns_stride, parts.ssm_stride, parts.k_stride,
                        parts.v_stride};
    args.grad_params = sums_there.gradients();
    mamba3_scan_backward(args, ctx_);
    grad_rows_there.read_back();
    angles_there.read_back();
    grads_there.read_back();
    sums_there.read_back();
    note_rows(grad_rows);
    note_params(sums);
    note_states(grads, angles);
  }

  void note_rows(const Floats& grad_rows) {
    if (golden_.mixer) {
      const Floats grad =
          linear_backward(cast<float>(std::span(golden_.at("in.u"))),
                          cast<float>(std::span(golden_.at("param.in_proj.weight"))), grad_rows,
                          golden_.width, out_["param.in_proj.weight"]);
      return note("in.u", grad);
    }
    const std::pair<const char*, std::int64_t> columns[] = {
        {"in.z", golden_.inner()},  {"in.x", golden_.inner()}, {"in.B", golden_.shared()},
        {"in.C", golden_.shared()}, {"in.dd_dt", d_.heads},    {"in.dd_A", d_.heads},
        {"in.trap", d_.heads},      {"in.angle", d_.angles}};
    std::int64_t begin = 0;
    for (const auto& [name, width] : columns) {
      for (std::int64_t t = 0; t < tokens(); ++t) {
        const auto from = grad_rows.begin() + t * golden_.projected() + begin;
        out_[name].insert(out_[name].end(), from, from + width);
      }
      begin += width;
    }
  }

  void note_params(const Mamba3RefInputs<float>& sums) {
    note("param.dt_bias", sums.dt_bias);
    note("param.D", sums.skip);
    note("param.B_bias", sums.in_b_bias);
    note("param.C_bias", sums.out_c_bias);
    note("param.B_norm.weight", sums.in_b_norm);
    note("param.C_norm.weight", sums.out_c_norm);
    note("param.mimo_x", sums.mimo_x);
    note("param.mimo_z", sums.mimo_z);
    note("param.mimo_o", sums.mimo_o);
    note("param.norm.weight", sums.out_norm);
  }

  void note_states(const Slots& grads, const Floats& angles) {
    note("state0.angle", angles);
    note("state0.k", grads.k);
    note("state0.v", grads.v);
    std::vector<double>& ssm = out_["state0.ssm"];
    ssm.resize(grads.ssm.size());
    for (std::int64_t i = 0; i < sequences(); ++i) {
      for_each_ssm([&](std::int64_t file, std::int64_t ours) {
        ssm[i * grads.matrix + file] = grads.ssm[i * grads.matrix + ours];
      });
    }
  }

  void note(const char* name, const Floats& values) {
    out_[name].assign(values.begin(), values.end());
  }

  const Golden& golden_;
  const Mamba3Dims& d_;
  Context& ctx_;
  Mamba3RefInputs<float> in_;  // all tokens
  std::vector<std::int32_t> slots_;
  std::vector<std::uint32_t> turns_;
  std::optional<Mirror<const std::int64_t>> bounds_there_;
  std::optional<Mirror<const std::int32_t>> slots_there_;
  std::vector<Mirror<const float>> params_there_;
  GoldenGradients out_;
};

}  // namespace

GoldenGradients op_gradients(const Golden& golden, Context& ctx) {
  return OpGradients(golden, ctx).run();
}

}  // namespace mamba3
