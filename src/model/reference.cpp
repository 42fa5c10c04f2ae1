#include "model/reference.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <type_traits>

#include "core/check.h"
#include "model/mixer.h"
#include "ops/mamba3_scan/mamba3_scan_ref.h"

namespace mamba3 {
namespace {

constexpr double kNormEps = 1e-5;

// T double: the oracle. T float: the plain run in the precision of the fast paths.
template <class T>
class Reference {
 public:
  Reference(const ModelConfig& config, const std::map<std::string, TensorRef>& tensors,
            PlainRounding rounding, std::optional<AuthorsPath> authors = {})
      : config_(config), tensors_(tensors), rounding_(rounding), authors_(authors) {}

  std::vector<T> logits(std::span<const std::int32_t> ids) {
    tokens_ = static_cast<std::int64_t>(ids.size());
    std::vector<T> residual = embed(ids);
    for (std::int64_t l = 0; l < config_.layers; ++l) {
      const std::string block = "backbone.layers." + std::to_string(l) + ".";
      add(residual, mix(norm(residual, load(block + "norm.weight")), block + "mixer."));
      if (config_.mlp_hidden > 0) {
        add(residual, mlp(norm(residual, load(block + "norm2.weight")), block + "mlp."));
      }
    }
    const std::vector<T> last = norm(residual, load("backbone.norm_f.weight"));
    const char* head = config_.tied_embeddings ? "backbone.embedding.weight" : "lm_head.weight";
    return product(last, load(head), config_.width);
  }

 private:
  std::vector<T> load(const std::string& name) const {
    const auto it = tensors_.find(name);
    check_input(it != tensors_.end(), "tensor ", name,
                " is missing; expected all of the model's tensors");
    const TensorRef& tensor = it->second;
    std::vector<T> out(static_cast<std::size_t>(tensor.elements()));
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (tensor.dtype == DType::kBf16) {
        Bf16 value;
        std::memcpy(&value, tensor.data + 2 * i, 2);
        out[i] = to_float(value);
      } else {
        check_input(tensor.dtype == DType::kF32, name, " has type ", dtype_name(tensor.dtype),
                    "; the reference reads BF16 and F32");
        float value;
        std::memcpy(&value, tensor.data + 4 * i, 4);
        out[i] = value;
      }
    }
    return out;
  }

  static T bf16(T v) { return static_cast<T>(to_float(to_bf16(static_cast<float>(v)))); }

  // What a linear takes its inputs as.
  T factor(T v) const { return rounding_.linears ? bf16(v) : v; }

  // What a linear gives.
  std::vector<T> matmul(const std::vector<T>& x, const std::vector<T>& w, std::int64_t k) const {
    std::vector<T> y = product(x, w, k);
    if (authors_) {
      for (T& v : y) v = bf16(v);
    }
    return y;
  }

  // x [t, k] times w [n, k] transposed.
  std::vector<T> product(const std::vector<T>& x, const std::vector<T>& w, std::int64_t k) const {
    const auto rows = static_cast<std::int64_t>(x.size()) / k,
               n = static_cast<std::int64_t>(w.size()) / k;
    std::vector<T> y(static_cast<std::size_t>(rows * n));
    for (std::int64_t t = 0; t < rows; ++t) {
      for (std::int64_t j = 0; j < n; ++j) {
        T sum = 0;
        for (std::int64_t i = 0; i < k; ++i) sum += factor(x[t * k + i]) * factor(w[j * k + i]);
        y[t * n + j] = sum;
      }
    }
    return y;
  }

  static void add(std::vector<T>& residual, const std::vector<T>& hidden) {
    for (std::size_t i = 0; i < residual.size(); ++i) residual[i] += hidden[i];
  }

  std::vector<T> embed(std::span<const std::int32_t> ids) const {
    const std::vector<T> table = load("backbone.embedding.weight");
    std::vector<T> out;
    for (const std::int32_t id : ids) {
      const auto row = table.begin() + id * config_.width;
      out.insert(out.end(), row, row + config_.width);
    }
    return out;
  }

  static std::vector<T> norm(const std::vector<T>& x, const std::vector<T>& weight) {
    std::vector<T> y(x.size());
    const std::size_t d = weight.size();
    for (std::size_t row = 0; row < x.size(); row += d) {
      T sum = 0;
      for (std::size_t i = 0; i < d; ++i) sum += x[row + i] * x[row + i];
      const T rstd = T(1) / std::sqrt(sum / static_cast<T>(d) + static_cast<T>(kNormEps));
      for (std::size_t i = 0; i < d; ++i) y[row + i] = x[row + i] * rstd * weight[i];
    }
    return y;
  }

  std::vector<T> mlp(const std::vector<T>& x, const std::string& prefix) const {
    const std::vector<T> wide = matmul(x, load(prefix + "fc1.weight"), config_.width);
    const std::int64_t f = config_.mlp_hidden;
    std::vector<T> gated(static_cast<std::size_t>(tokens_ * f));
    for (std::int64_t t = 0; t < tokens_; ++t) {
      for (std::int64_t i = 0; i < f; ++i) {
        const T gate = wide[t * 2 * f + f + i];
        const T silu = gate / (T(1) + std::exp(-gate));
        gated[t * f + i] = wide[t * 2 * f + i] * (authors_ ? bf16(silu) : silu);
      }
    }
    return matmul(gated, load(prefix + "fc2.weight"), f);
  }

  // Columns [begin, begin + count) of every row.
  std::vector<T> columns(const std::vector<T>& rows, std::int64_t& begin,
                         std::int64_t count) const {
    const std::int64_t width = config_.in_proj_rows();
    std::vector<T> out;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      const auto from = rows.begin() + t * width + begin;
      out.insert(out.end(), from, from + count);
    }
    begin += count;
    return out;
  }

  std::vector<T> mix(const std::vector<T>& x, const std::string& prefix) const {
    const std::vector<T> projected = matmul(x, load(prefix + "in_proj.weight"), config_.width);
    Mamba3RefInputs<T> in;
    in.dims = mixer_dims(config_);
    in.a_floor = config_.mixer.a_floor;
    in.bf16_products = rounding_.scan;
    in.tokens = tokens_;
    const std::int64_t h = in.dims.heads, bc = in.dims.rank * in.dims.groups * in.dims.state;
    std::int64_t at = 0;
    in.z = columns(projected, at, config_.inner());
    in.x = columns(projected, at, config_.inner());
    in.in_b = columns(projected, at, bc);
    in.out_c = columns(projected, at, bc);
    in.dt_raw = columns(projected, at, h);
    in.decay_raw = columns(projected, at, h);
    in.trap_raw = columns(projected, at, h);
    in.angle_raw = columns(projected, at, in.dims.angle_columns());
    load_small(in, prefix);
    auto state = Mamba3RefState<T>::zeros(in.dims);
    return matmul(scan(in, state), load(prefix + "out_proj.weight"), config_.inner());
  }

  std::vector<T> scan(const Mamba3RefInputs<T>& in, Mamba3RefState<T>& state) const {
    if constexpr (std::is_same_v<T, float>) {
      if (authors_) return mamba3_authors_ref(in, state, *authors_);
    }
    return mamba3_scan_ref(in, state);
  }

  void load_small(Mamba3RefInputs<T>& in, const std::string& prefix) const {
    in.dt_bias = load(prefix + "dt_bias");
    in.skip = load(prefix + "D");
    in.in_b_bias = load(prefix + "B_bias");
    in.out_c_bias = load(prefix + "C_bias");
    in.in_b_norm = load(prefix + "B_norm.weight");
    in.out_c_norm = load(prefix + "C_norm.weight");
    if (in.dims.mimo) {
      in.mimo_x = load(prefix + "mimo_x");
      in.mimo_z = load(prefix + "mimo_z");
      in.mimo_o = load(prefix + "mimo_o");
    }
    if (in.dims.out_norm) in.out_norm = load(prefix + "norm.weight");
  }

  const ModelConfig& config_;
  const std::map<std::string, TensorRef>& tensors_;
  const PlainRounding rounding_;
  const std::optional<AuthorsPath> authors_;
  std::int64_t tokens_ = 0;
};

}  // namespace

std::vector<double> reference_logits(const ModelConfig& config,
                                     const std::map<std::string, TensorRef>& tensors,
                                     std::span<const std::int32_t> ids) {
  return Reference<double>(config, tensors, {}).logits(ids);
}

std::vector<float> plain_logits(const ModelConfig& config,
                                const std::map<std::string, TensorRef>& tensors,
                                std::span<const std::int32_t> ids, PlainRounding rounding) {
  return Reference<float>(config, tensors, rounding).logits(ids);
}

std::vector<float> authors_logits(const ModelConfig& config,
                                  const std::map<std::string, TensorRef>& tensors,
                                  std::span<const std::int32_t> ids, AuthorsPath path) {
  return Reference<float>(config, tensors, {true, false}, path).logits(ids);
}

}  // namespace mamba3
