#include "train/reference_gradients.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/tolerance.h"
#include "model/mixer.h"
#include "ops/cross_entropy/cross_entropy_ref.h"
#include "ops/embedding_backward/embedding_backward_ref.h"
#include "ops/linear_backward/linear_backward_ref.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward_ref.h"
#include "ops/rms_norm_backward/rms_norm_backward_ref.h"

namespace mamba3 {
namespace {

constexpr double kNormEps = 1e-5;

template <class T>
class Reference {
 public:
  using Vector = std::vector<T>;

  Reference(const ModelConfig& config, const std::map<std::string, TensorRef>& tensors,
            const LossOptions& options, int first_quarter)
      : config_(config), options_(options), quarter_(first_quarter) {
    for (const TensorSpec& spec : tensor_specs(config)) {
      const auto it = tensors.find(spec.name);
      check_input(it != tensors.end(), "tensor ", spec.name,
                  " is missing; expected all of the model's tensors");
      const std::vector<float> values = widen(it->second);
      weights_[spec.name] = Vector(values.begin(), values.end());
      out_.tensors[spec.name] = Vector(values.size());
    }
  }

  // `states` of each layer: read and overwritten.
  void sequence(std::span<const std::int32_t> ids, std::span<const std::int32_t> targets,
                std::vector<Mamba3RefState<T>>& states) {
    tokens_ = std::ssize(ids);
    if (tokens_ == 0) return;
    tapes_.clear();
    Vector stream = embed(ids);
    for (std::int64_t l = 0; l < config_.layers; ++l) forward(layer_name(l), stream, states[l]);
    Vector grad = loss(stream, targets);
    for (std::int64_t l = config_.layers - 1; l >= 0; --l) backward(layer_name(l), tapes_[l], grad);
    embedding_backward_ref(ids, grad, config_.width, out_.tensors.at("backbone.embedding.weight"));
  }

  ReferenceGradients<T> take() { return std::move(out_); }

 private:
  struct Tape {
    Vector before_mixer, mixer_in, mixed, before_mlp, mlp_in, wide, gated;
    Mamba3RefInputs<T> scan;
    Mamba3RefState<T> start;
  };

  static std::string layer_name(std::int64_t l) {
    return "backbone.layers." + std::to_string(l) + ".";
  }
  const Vector& weight(const std::string& name) const { return weights_.at(name); }

  static void add(Vector& to, const Vector& values) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += values[i];
  }

  Vector embed(std::span<const std::int32_t> ids) const {
    const Vector& table = weight("backbone.embedding.weight");
    Vector out;
    for (const std::int32_t id : ids) {
      const auto row = table.begin() + id * config_.width;
      out.insert(out.end(), row, row + config_.width);
    }
    return out;
  }

  Vector norm(const Vector& x, const std::string& name) const {
    const Vector& w = weight(name);
    Vector y(x.size());
    for (std::size_t row = 0; row < x.size(); row += w.size()) {
      T sum = 0;
      for (std::size_t i = 0; i < w.size(); ++i) sum += x[row + i] * x[row + i];
      const T rms = std::sqrt(sum / static_cast<T>(w.size()) + static_cast<T>(kNormEps));
      for (std::size_t i = 0; i < w.size(); ++i) y[row + i] = x[row + i] / rms * w[i];
    }
    return y;
  }

  // x [t, k] times the transposed weights [n, k].
  Vector product(const Vector& x, const std::string& name) const {
    const Vector& w = weight(name);
    const std::int64_t k = std::ssize(x) / tokens_, n = std::ssize(w) / k;
    Vector y(static_cast<std::size_t>(tokens_ * n));
    for (std::int64_t i = 0; i < tokens_ * n; ++i) {
      for (std::int64_t j = 0; j < k; ++j) {
        const std::int64_t at = (j + quarter_ * k / 4) % k;
        y[i] += x[i / n * k + at] * w[i % n * k + at];
      }
    }
    return y;
  }

  void forward(const std::string& name, Vector& stream, Mamba3RefState<T>& state) {
    Tape& tape = tapes_.emplace_back();
    tape.before_mixer = stream;
    tape.mixer_in = norm(stream, name + "norm.weight");
    load_scan(tape.scan, name + "mixer.", product(tape.mixer_in, name + "mixer.in_proj.weight"));
    tape.start = state;
    tape.mixed = mamba3_scan_ref(tape.scan, state);
    add(stream, product(tape.mixed, name + "mixer.out_proj.weight"));
    if (config_.mlp_hidden == 0) return;
    tape.before_mlp = stream;
    tape.mlp_in = norm(stream, name + "norm2.weight");
    tape.wide = product(tape.mlp_in, name + "mlp.fc1.weight");
    const std::int64_t f = config_.mlp_hidden;
    for (std::int64_t i = 0; i < tokens_ * f; ++i) {
      const T gate = tape.wide[i / f * 2 * f + f + i % f];
      tape.gated.push_back(tape.wide[i / f * 2 * f + i % f] * gate / (1 + std::exp(-gate)));
    }
    add(stream, product(tape.gated, name + "mlp.fc2.weight"));
  }

  // The parts of a token's row of in_proj, in their order.
  static std::vector<Vector*> columns(Mamba3RefInputs<T>& in) {
    return {&in.z,      &in.x,         &in.in_b,     &in.out_c,
            &in.dt_raw, &in.decay_raw, &in.trap_raw, &in.angle_raw};
  }

  void load_scan(Mamba3RefInputs<T>& in, const std::string& name, const Vector& projected) const {
    in.dims = mixer_dims(config_);
    in.a_floor = config_.mixer.a_floor;
    in.tokens = tokens_;
    const std::int64_t h = in.dims.heads, bc = in.dims.rank * in.dims.groups * in.dims.state;
    const std::int64_t widths[] = {config_.inner(),        config_.inner(), bc, bc, h, h, h,
                                   in.dims.angle_columns()};
    auto from = projected.begin();
    for (std::int64_t t = 0; t < tokens_; ++t) {
      const auto parts = columns(in);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        parts[i]->insert(parts[i]->end(), from, from + widths[i]);
        from += widths[i];
      }
    }
    for (const auto& [tensor, part] : parameters(in, name)) *part = weight(tensor);
  }

  static std::map<std::string, Vector*> parameters(Mamba3RefInputs<T>& in,
                                                   const std::string& name) {
    std::map<std::string, Vector*> out = {
        {name + "dt_bias", &in.dt_bias},         {name + "D", &in.skip},
        {name + "B_bias", &in.in_b_bias},        {name + "C_bias", &in.out_c_bias},
        {name + "B_norm.weight", &in.in_b_norm}, {name + "C_norm.weight", &in.out_c_norm}};
    if (in.dims.mimo) {
      out[name + "mimo_x"] = &in.mimo_x;
      out[name + "mimo_z"] = &in.mimo_z;
      out[name + "mimo_o"] = &in.mimo_o;
    }
    if (in.dims.out_norm) out[name + "norm.weight"] = &in.out_norm;
    return out;
  }

  // Returns the gradient of the stream after the last block.
  Vector loss(const Vector& stream, std::span<const std::int32_t> targets) {
    const std::string head =
        config_.tied_embeddings ? "backbone.embedding.weight" : "lm_head.weight";
    const auto found = cross_entropy_ref<T>(
        norm(stream, "backbone.norm_f.weight"), weight(head), targets, config_.width,
        static_cast<T>(options_.z_weight), static_cast<T>(options_.grad_scale));
    for (const T value : found.losses) out_.loss += value;
    for (const T z : found.z) out_.squared_z += z * z;
    add(out_.tensors.at(head), found.grad_w);
    return norm_backward(stream, "backbone.norm_f.weight", found.grad_x);
  }

  Vector norm_backward(const Vector& x, const std::string& name, const Vector& grad_y) {
    const auto found = rms_norm_backward_ref<T>(x, weight(name), grad_y, static_cast<T>(kNormEps));
    add(out_.tensors.at(name), found.weight);
    return found.residual;
  }

  Vector product_backward(const Vector& x, const std::string& name, const Vector& grad_y) {
    const auto found = linear_backward_ref<T>(
        x, weight(name), grad_y, tokens_, std::ssize(grad_y) / tokens_, std::ssize(x) / tokens_);
    add(out_.tensors.at(name), found.w);
    return found.x;
  }

  // `grad`: that of the stream after the block; becomes that before it.
  void backward(const std::string& name, Tape& tape, Vector& grad) {
    if (config_.mlp_hidden > 0) mlp_backward(name, tape, grad);
    const Vector grad_mixed = product_backward(tape.mixed, name + "mixer.out_proj.weight", grad);
    const auto zeros = Mamba3RefState<T>::zeros(tape.scan.dims);
    auto found = mamba3_scan_backward_ref<T>(tape.scan, tape.start, grad_mixed, zeros);
    found.inputs.dims = tape.scan.dims;
    for (const auto& [tensor, part] : parameters(found.inputs, name + "mixer.")) {
      add(out_.tensors.at(tensor), *part);
    }
    Vector grad_projected;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      for (const Vector* part : columns(found.inputs)) {
        const std::int64_t width = std::ssize(*part) / tokens_;
        grad_projected.insert(grad_projected.end(), part->begin() + t * width,
                              part->begin() + (t + 1) * width);
      }
    }
    const Vector grad_in =
        product_backward(tape.mixer_in, name + "mixer.in_proj.weight", grad_projected);
    add(grad, norm_backward(tape.before_mixer, name + "norm.weight", grad_in));
  }

  void mlp_backward(const std::string& name, Tape& tape, Vector& grad) {
    const std::int64_t f = config_.mlp_hidden;
    const Vector grad_gated = product_backward(tape.gated, name + "mlp.fc2.weight", grad);
    Vector grad_wide(tape.wide.size());
    for (std::int64_t i = 0; i < tokens_ * f; ++i) {
      const std::int64_t up = i / f * 2 * f + i % f;
      const T gate = tape.wide[up + f], s = 1 / (1 + std::exp(-gate));
      grad_wide[up] = grad_gated[i] * gate * s;
      grad_wide[up + f] = grad_gated[i] * tape.wide[up] * s * (1 + gate * (1 - s));
    }
    const Vector grad_in = product_backward(tape.mlp_in, name + "mlp.fc1.weight", grad_wide);
    add(grad, norm_backward(tape.before_mlp, name + "norm2.weight", grad_in));
  }

  const ModelConfig& config_;
  const LossOptions& options_;
  const std::int64_t quarter_;
  std::map<std::string, Vector> weights_;
  ReferenceGradients<T> out_;
  std::int64_t tokens_ = 0;
  std::vector<Tape> tapes_;
};

ReferenceStates<float> rounded(const ReferenceStates<double>& states) {
  ReferenceStates<float> out;
  for (const std::vector<Mamba3RefState<double>>& layers : states) {
    std::vector<Mamba3RefState<float>>& to = out.emplace_back();
    for (const auto& [angle, ssm, k, v] : layers) {
      to.push_back({{angle.begin(), angle.end()},
                    {ssm.begin(), ssm.end()},
                    {k.begin(), k.end()},
                    {v.begin(), v.end()}});
    }
  }
  return out;
}

}  // namespace

template <class T>
ReferenceGradients<T> reference_gradients(const ModelConfig& config,
                                          const std::map<std::string, TensorRef>& tensors,
                                          const TrainingBatch& batch, const LossOptions& options,
                                          int first_quarter, ReferenceStates<T>* states) {
  const std::vector fresh(static_cast<std::size_t>(config.layers),
                          Mamba3RefState<T>::zeros(mixer_dims(config)));
  Reference<T> reference(config, tensors, options, first_quarter);
  for (std::size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    const auto begin = static_cast<std::size_t>(batch.cu_seqlens[i]);
    const auto count = static_cast<std::size_t>(batch.cu_seqlens[i + 1]) - begin;
    auto own = fresh;
    reference.sequence(batch.ids.subspan(begin, count), batch.targets.subspan(begin, count),
                       states == nullptr ? own : states->at(i));
  }
  return reference.take();
}

template ReferenceGradients<double> reference_gradients(const ModelConfig&,
                                                        const std::map<std::string, TensorRef>&,
                                                        const TrainingBatch&, const LossOptions&,
                                                        int, ReferenceStates<double>*);
template ReferenceGradients<float> reference_gradients(const ModelConfig&,
                                                       const std::map<std::string, TensorRef>&,
                                                       const TrainingBatch&, const LossOptions&,
                                                       int, ReferenceStates<float>*);

std::map<std::string, double> plain_gradient_errors(const ModelConfig& config,
                                                    const std::map<std::string, TensorRef>& tensors,
                                                    const TrainingBatch& batch,
                                                    const LossOptions& options,
                                                    const ReferenceGradients<double>& exact,
                                                    const ReferenceStates<double>& states) {
  std::map<std::string, double> out;
  for (int quarter = 0; quarter < 4; ++quarter) {
    ReferenceStates<float> own = rounded(states);
    const auto plain = reference_gradients<float>(config, tensors, batch, options, quarter,
                                                  own.empty() ? nullptr : &own);
    for (const auto& [name, values] : plain.tensors) {
      const double error =
          largest_error(std::span<const float>(values),
                        std::span<const double>(exact.tensors.at(name)), ErrorMetric::kRelative);
      out[name] = std::max(out[name], error);
    }
  }
  return out;
}

}  // namespace mamba3
