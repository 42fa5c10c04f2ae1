#include "engine/golden.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "core/check.h"
#include "io/json.h"
#include "io/tensor_file.h"

namespace mamba3 {
namespace {

using Shape = std::vector<std::int64_t>;

class GoldenReader {
 public:
  explicit GoldenReader(const std::filesystem::path& path)
      : file_(read_safetensors(path)), name_(path.string()) {
    out_.file = name_;
  }

  Golden read() {
    read_options();
    if (out_.mixer) {
      read_mixer_sizes();
    } else {
      read_scan_sizes();
    }
    check_dims(out_.dims);
    read_bounds();
    read_inputs();
    read_params();
    const std::int64_t rows = out_.bounds.back();
    take("out.y", out_.mixer ? Shape{batch_, tokens_, out_.width}
                             : Shape{batch_, tokens_, out_.dims.heads, out_.dims.head_dim});
    check_input(rows == batch_ * tokens_, name_, " ends its sequences at ", rows, "; expected all ",
                batch_ * tokens_, " tokens");
    if (has("state0.ssm")) take_state("state0");
    take_state("state1");
    for (const std::int64_t cut : out_.cuts) take_state("cut" + std::to_string(cut));
    if (has("cot.y")) read_gradients();
    return std::move(out_);
  }

 private:
  bool has(const std::string& name) const { return file_.tensors.contains(name); }

  const TensorRef& find(const std::string& name, std::size_t rank) const {
    const auto it = file_.tensors.find(name);
    check_input(it != file_.tensors.end(), name_, " has no tensor ", name,
                "; expected a golden file of a scan or a mixer");
    check_input(it->second.shape.size() == rank, name, " in ", name_, " has shape ",
                shape_string(it->second.shape), "; expected ", rank, " dimensions");
    return it->second;
  }

  void take(const std::string& name, const Shape& shape) {
    const TensorRef& tensor = find(name, shape.size());
    check_input(tensor.shape == shape && tensor.dtype == DType::kF64, name, " in ", name_, " is ",
                dtype_name(tensor.dtype), " ", shape_string(tensor.shape), "; expected F64 ",
                shape_string(shape));
    std::vector<double>& values = out_.tensors[name];
    values.resize(static_cast<std::size_t>(tensor.elements()));
    if (!values.empty()) std::memcpy(values.data(), tensor.data, values.size() * sizeof(double));
  }

  void take_state(const std::string& prefix) {
    const Mamba3Dims& d = out_.dims;
    const std::int64_t q = out_.sequences();
    take(prefix + ".angle", {q, d.heads, d.angles});
    take(prefix + ".ssm", {q, d.heads, d.head_dim, d.state});
    take(prefix + ".k", {q, d.rank, d.heads, d.state});
    take(prefix + ".v", {q, d.heads, d.head_dim});
  }

  // What no tensor shows.
  void read_options() {
    const auto it = file_.metadata.find("case");
    check_input(it != file_.metadata.end(), name_,
                " has no \"case\" in its metadata; expected a golden file");
    const nlohmann::json options = parse_json_limited(it->second, name_ + ": case");
    try {
      const std::string kind = options.at("kind");
      check_input(kind == "scan" || kind == "mixer", name_, " is of kind ", kind,
                  "; expected scan or mixer");
      out_.mixer = kind == "mixer";
      out_.dims.mimo = options.value("mimo", false);
      out_.dims.out_norm = options.value("outnorm", false);
      out_.dims.groups = options.value("G", std::int64_t{1});
      out_.a_floor = options.value("A_floor", 1e-4);
      out_.dims.a_floor = static_cast<float>(out_.a_floor);
      const std::string act = options.value("act", "heavy_tail");
      check_input(act == "heavy_tail" || act == "softplus", name_, " uses the activation ", act,
                  "; expected heavy_tail or softplus");
      out_.dims.a_activation = act == "softplus" ? AActivation::kSoftplus : AActivation::kHeavyTail;
      const std::set<std::int64_t> cuts = options.value("cuts", std::set<std::int64_t>{});
      out_.cuts.assign(cuts.begin(), cuts.end());
    } catch (const nlohmann::json::exception&) {
      fail(ErrorCode::kBadInput, name_,
           ": its case lacks \"kind\" or has an option of the wrong type; expected a golden file");
    }
  }

  void read_scan_sizes() {
    const Shape& x = find("in.x", 4).shape;
    const Shape& in_b = find("in.B", 5).shape;
    batch_ = x[0];
    tokens_ = x[1];
    out_.dims.heads = x[2];
    out_.dims.head_dim = x[3];
    out_.dims.rank = in_b[2];
    out_.dims.groups = in_b[3];
    out_.dims.state = in_b[4];
    out_.dims.angles = find("in.angle", 3).shape[2];
  }

  void read_mixer_sizes() {
    const Shape& u = find("in.u", 3).shape;
    const Shape& bias = find("param.B_bias", 3).shape;
    const std::int64_t inner = find("param.out_proj.weight", 2).shape[1];
    batch_ = u[0];
    tokens_ = u[1];
    out_.width = u[2];
    Mamba3Dims& d = out_.dims;
    d.heads = bias[0];
    d.rank = bias[1];
    d.state = bias[2];
    d.head_dim = d.heads > 0 ? inner / d.heads : 0;
    check_dims(d);
    check_input(out_.width > 0 && d.groups > 0, name_, " has width ", out_.width,
                "; expected at least 1");
    // What the other columns leave of in_proj; take() checks that all of it adds up.
    d.angles = find("param.in_proj.weight", 2).shape[0] - out_.projected();
  }

  void read_bounds() {
    check_input(batch_ >= 1 && tokens_ >= 1, name_, " has ", batch_, " x ", tokens_,
                " tokens; expected at least one");
    if (!has("cu_seqlens")) {
      for (std::int64_t i = 0; i <= batch_; ++i) out_.bounds.push_back(i * tokens_);
      for (const std::int64_t cut : out_.cuts) {
        check_input(cut >= 0 && cut <= tokens_, name_, " has a cut after ", cut,
                    " tokens; expected 0 to ", tokens_);
      }
      return;
    }
    const TensorRef& bounds = find("cu_seqlens", 1);
    check_input(bounds.dtype == DType::kI64 && bounds.shape[0] >= 2 && out_.cuts.empty(), name_,
                " has cu_seqlens ", dtype_name(bounds.dtype), " ", shape_string(bounds.shape),
                "; expected I64 [sequences + 1] and no cuts");
    out_.bounds.resize(static_cast<std::size_t>(bounds.shape[0]));
    std::memcpy(out_.bounds.data(), bounds.data, out_.bounds.size() * sizeof(std::int64_t));
    check_input(out_.bounds.front() == 0 && std::is_sorted(out_.bounds.begin(), out_.bounds.end()),
                name_, " has cu_seqlens that do not start at 0 or decrease");
  }

  void read_inputs() {
    const Mamba3Dims& d = out_.dims;
    if (out_.mixer) {
      take("in.u", {batch_, tokens_, out_.width});
      take("param.in_proj.weight", {out_.projected(), out_.width});
      take("param.out_proj.weight", {out_.width, out_.inner()});
      return;
    }
    for (const char* name : {"in.x", "in.z"}) take(name, {batch_, tokens_, d.heads, d.head_dim});
    for (const char* name : {"in.B", "in.C"}) {
      take(name, {batch_, tokens_, d.rank, d.groups, d.state});
    }
    for (const char* name : {"in.dd_dt", "in.dd_A", "in.trap"}) {
      take(name, {batch_, tokens_, d.heads});
    }
    take("in.angle", {batch_, tokens_, d.angles});
  }

  void read_params() {
    const Mamba3Dims& d = out_.dims;
    for (const char* name : {"param.dt_bias", "param.D"}) take(name, {d.heads});
    for (const char* name : {"param.B_bias", "param.C_bias"}) {
      take(name, {d.heads, d.rank, d.state});
    }
    for (const char* name : {"param.B_norm.weight", "param.C_norm.weight"}) take(name, {d.state});
    if (d.mimo) {
      for (const char* name : {"param.mimo_x", "param.mimo_z", "param.mimo_o"}) {
        take(name, {d.heads, d.rank, d.head_dim});
      }
    }
    if (d.out_norm) take("param.norm.weight", {out_.inner()});
  }

  // Of the loss sum(out.y * cot.y) + sum(state1 * cot.state1).
  void read_gradients() {
    take("cot.y", file_.tensors.at("out.y").shape);
    take_state("cot.state1");
    std::vector<std::string> inputs;
    for (const auto& [name, values] : out_.tensors) {
      if (name.starts_with("in.") || name.starts_with("param.") || name.starts_with("state0.")) {
        inputs.push_back(name);
      }
    }
    for (const std::string& name : inputs) take("grad." + name, file_.tensors.at(name).shape);
  }

  TensorFile file_;
  std::string name_;
  std::int64_t batch_ = 0;
  std::int64_t tokens_ = 0;
  Golden out_;
};

}  // namespace

const std::vector<double>& Golden::at(const std::string& name) const {
  static const std::vector<double> none;
  const auto it = tensors.find(name);
  return it == tensors.end() ? none : it->second;
}

Golden read_golden(const std::filesystem::path& path) {
  return GoldenReader(path).read();
}

Mamba3RefState<double> golden_state(const Golden& golden, const std::string& prefix,
                                    std::int64_t sequence) {
  Mamba3RefState<double> state = Mamba3RefState<double>::zeros(golden.dims);
  const auto copy = [&](const char* part, std::vector<double>& to) {
    const std::vector<double>& from = golden.at(prefix + part);
    if (from.empty()) return;
    const auto count = static_cast<std::int64_t>(to.size());
    std::copy_n(from.begin() + sequence * count, count, to.begin());
  };
  copy(".angle", state.angle);
  copy(".ssm", state.ssm);
  copy(".k", state.k);
  copy(".v", state.v);
  return state;
}

}  // namespace mamba3
