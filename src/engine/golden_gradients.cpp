#include "engine/golden_gradients.h"

#include "engine/golden_inputs.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward_ref.h"

namespace mamba3 {
namespace {

template <class T>
class PlainGradients {
 public:
  explicit PlainGradients(const Golden& golden) : golden_(golden), in_(layer_of<T>(golden)) {}

  GoldenGradients run() {
    for (std::int64_t i = 0; i < golden_.sequences(); ++i) sequence(i);
    return std::move(out_);
  }

 private:
  void sequence(std::int64_t index) {
    const GoldenRange range{golden_.bounds[index], golden_.bounds[index + 1]};
    take_tokens(golden_, range, false, in_);
    const auto start = cast_state<T>(golden_state(golden_, "state0", index));
    const auto grad_end = cast_state<T>(golden_state(golden_, "cot.state1", index));
    auto grad_y = cast<T>(rows_of(golden_.at("cot.y"), range, golden_.out_width()));
    if (golden_.mixer) grad_y = out_proj_backward(start, grad_y);
    const Mamba3RefGradients<T> grads = mamba3_scan_backward_ref(in_, start, grad_y, grad_end);
    if (golden_.mixer) {
      in_proj_backward(range, grads.inputs);
    } else {
      columns(grads.inputs);
    }
    parameters(grads.inputs);
    append("state0.angle", grads.state.angle);
    append("state0.ssm", grads.state.ssm);
    append("state0.k", grads.state.k);
    append("state0.v", grads.state.v);
  }

  std::vector<T> out_proj_backward(Mamba3RefState<T> state, const std::vector<T>& grad_out) {
    const std::vector<T> y = mamba3_scan_ref(in_, state);
    return linear_backward(y, cast<T>(golden_.at("param.out_proj.weight")), grad_out,
                           golden_.inner(), out_["param.out_proj.weight"]);
  }

  void in_proj_backward(GoldenRange range, const Mamba3RefInputs<T>& grads) {
    std::vector<T> rows;
    for (std::int64_t t = 0; t < grads.tokens; ++t) {
      for (const auto* part : {&grads.z, &grads.x, &grads.in_b, &grads.out_c, &grads.dt_raw,
                               &grads.decay_raw, &grads.trap_raw, &grads.angle_raw}) {
        const auto width = static_cast<std::int64_t>(part->size()) / grads.tokens;
        rows.insert(rows.end(), part->begin() + t * width, part->begin() + (t + 1) * width);
      }
    }
    append("in.u", linear_backward(cast<T>(rows_of(golden_.at("in.u"), range, golden_.width)),
                                   cast<T>(golden_.at("param.in_proj.weight")), rows, golden_.width,
                                   out_["param.in_proj.weight"]));
  }

  void columns(const Mamba3RefInputs<T>& grads) {
    append("in.x", grads.x);
    append("in.z", grads.z);
    append("in.B", grads.in_b);
    append("in.C", grads.out_c);
    append("in.dd_dt", grads.dt_raw);
    append("in.dd_A", grads.decay_raw);
    append("in.trap", grads.trap_raw);
    append("in.angle", grads.angle_raw);
  }

  void parameters(const Mamba3RefInputs<T>& grads) {
    add("param.dt_bias", grads.dt_bias);
    add("param.D", grads.skip);
    add("param.B_bias", grads.in_b_bias);
    add("param.C_bias", grads.out_c_bias);
    add("param.B_norm.weight", grads.in_b_norm);
    add("param.C_norm.weight", grads.out_c_norm);
    add("param.mimo_x", grads.mimo_x);
    add("param.mimo_z", grads.mimo_z);
    add("param.mimo_o", grads.mimo_o);
    add("param.norm.weight", grads.out_norm);
  }

  void append(const std::string& name, const std::vector<T>& values) {
    out_[name].insert(out_[name].end(), values.begin(), values.end());
  }
  void add(const std::string& name, const std::vector<T>& values) {
    std::vector<double>& sum = out_[name];
    sum.resize(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) sum[i] += values[i];
  }

  const Golden& golden_;
  Mamba3RefInputs<T> in_;
  GoldenGradients out_;
};

}  // namespace

template <class T>
GoldenGradients plain_gradients(const Golden& golden) {
  return PlainGradients<T>(golden).run();
}

template GoldenGradients plain_gradients<double>(const Golden&);
template GoldenGradients plain_gradients<float>(const Golden&);

}  // namespace mamba3
