#include "mamba3/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "core/check.h"

namespace mamba3 {
namespace {

// In the order of Rope.
constexpr const char* kRopeNames[] = {"data-dependent", "standard", "none"};

struct PresetSize {
  const char* name;
  std::int64_t width;
  std::int64_t layers;
  std::int64_t siso_hidden;  // f, before rounding up
  std::int64_t mimo_hidden;
};

// MIMO models have narrower MLPs, which pays for their larger in_proj.
constexpr std::array<PresetSize, 4> kSizes{{
    {"187m", 768, 12, 1500, 1264},
    {"440m", 1024, 24, 2048, 1792},
    {"890m", 1536, 24, 3072, 2800},
    {"1.5b", 2048, 24, 4096, 3824},
}};

// Bounds that keep every size below in 63 bits and the walk over all tensors short, far above any
// model that exists.
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 18;
constexpr std::int64_t kMaxInner = std::int64_t{1} << 22;
constexpr std::int64_t kMaxInProjRows = std::int64_t{1} << 26;
constexpr std::int64_t kMaxHidden = std::int64_t{1} << 22;
constexpr std::int64_t kMaxLayers = 4096;
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 30;
constexpr std::int64_t kMaxState = 65536;
constexpr std::int64_t kMaxRank = 8;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

void check_range(const char* field, std::int64_t value, std::int64_t least, std::int64_t most) {
  check_input(value >= least && value <= most, field, " is ", value, "; expected ", least, " to ",
              most, "; correct it in the model's config");
}

void check_mixer(const Mamba3Config& mixer) {
  check_range("d_state", mixer.state, 2, kMaxState);
  check_range("expand", mixer.expand, 1, 1024);
  check_range("headdim", mixer.head_dim, 1, kMaxInner);
  check_range("ngroups", mixer.groups, 1, kMaxInner);
  check_input(mixer.rank >= 1, "mimo_rank is ", mixer.rank, "; expected 1 to ", kMaxRank,
              "; correct it in the model's config");
  if (mixer.rank > kMaxRank) {
    fail(ErrorCode::kUnavailable, "mimo_rank is ", mixer.rank, "; expected at most ", kMaxRank,
         ", which is what the kernels are for; use a model of a smaller rank");
  }
  check_range("chunk_size", mixer.chunk_size, 1, 1 << 20);
  check_input(mixer.state % 2 == 0, "d_state is ", mixer.state,
              "; expected an even number, since B and C are rotated in pairs; correct it in the "
              "model's config");
  check_input(mixer.mimo || mixer.rank == 1, "mimo_rank is ", mixer.rank,
              " but is_mimo is false; expected rank 1 or is_mimo true; correct one of them");
  check_input(mixer.rope_fraction == 0.5 || mixer.rope_fraction == 1.0, "rope_fraction is ",
              mixer.rope_fraction, "; expected 0.5 or 1.0; correct it in the model's config");
  check_input(mixer.rope == Rope::kNone || mixer.angles() >= 1, "d_state ", mixer.state,
              " with rope_fraction ", mixer.rope_fraction,
              " leaves no pair to rotate; expected a larger d_state");
  check_input(std::isfinite(mixer.a_floor) && mixer.a_floor >= 0, "A_floor is ", mixer.a_floor,
              "; expected a finite number, 0 or more; correct it in the model's config");
}

void add_layer_specs(const ModelConfig& config, const std::string& prefix,
                     std::vector<TensorSpec>& specs) {
  const Mamba3Config& mixer = config.mixer;
  const std::int64_t heads = config.heads();
  const std::vector<std::int64_t> bias_shape{heads, mixer.rank, mixer.state};
  const std::string in_mixer = prefix + "mixer.";

  specs.push_back({prefix + "norm.weight", {config.width}});
  specs.push_back({in_mixer + "dt_bias", {heads}});
  specs.push_back({in_mixer + "B_bias", bias_shape});
  specs.push_back({in_mixer + "C_bias", bias_shape});
  if (mixer.mimo) {
    for (const char* name : {"mimo_x", "mimo_z", "mimo_o"}) {
      specs.push_back({in_mixer + name, {heads, mixer.rank, mixer.head_dim}});
    }
  }
  specs.push_back({in_mixer + "D", {heads}});
  specs.push_back({in_mixer + "in_proj.weight", {config.in_proj_rows(), config.width}, true});
  specs.push_back({in_mixer + "B_norm.weight", {mixer.state}});
  specs.push_back({in_mixer + "C_norm.weight", {mixer.state}});
  if (mixer.out_norm) specs.push_back({in_mixer + "norm.weight", {config.inner()}});
  specs.push_back({in_mixer + "out_proj.weight", {config.width, config.inner()}, true});
  if (config.mlp_hidden > 0) {
    specs.push_back({prefix + "norm2.weight", {config.width}});
    specs.push_back({prefix + "mlp.fc1.weight", {2 * config.mlp_hidden, config.width}, true});
    specs.push_back({prefix + "mlp.fc2.weight", {config.width, config.mlp_hidden}, true});
  }
}

}  // namespace

const char* a_activation_name(AActivation activation) {
  return activation == AActivation::kSoftplus ? "softplus" : "heavy-tail";
}

const char* rope_name(Rope rope) {
  return kRopeNames[static_cast<int>(rope)];
}

Rope rope_named(const std::string& name) {
  const auto* found = std::find(std::begin(kRopeNames), std::end(kRopeNames), name);
  check_input(found != std::end(kRopeNames), "rope is \"", name,
              "\"; expected data-dependent, standard or none");
  return static_cast<Rope>(found - std::begin(kRopeNames));
}

std::vector<std::string> rope_names() {
  return {std::begin(kRopeNames), std::end(kRopeNames)};
}

std::int64_t Mamba3Config::angles() const {
  if (rope == Rope::kNone) return 0;
  const auto rotated = static_cast<std::int64_t>(static_cast<double>(state) * rope_fraction);
  return rotated / 2;  // an odd one out stays unrotated
}

std::int64_t Mamba3Config::angle_columns() const {
  return rope == Rope::kDataDependent ? angles() : 0;
}

std::int64_t ModelConfig::padded_vocab() const {
  return round_up(vocab, vocab_multiple);
}

std::int64_t ModelConfig::in_proj_rows() const {
  return 2 * inner() + 2 * mixer.rank * mixer.groups * mixer.state + 3 * heads() +
         mixer.angle_columns();
}

std::int64_t ModelConfig::parameters() const {
  std::int64_t count = 0;
  for (const TensorSpec& spec : tensor_specs(*this)) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : spec.shape) elements *= extent;
    count += elements;
  }
  return count;
}

std::int64_t ModelConfig::state_bytes() const {
  const std::int64_t angle = heads() * mixer.angles();
  const std::int64_t ssm = inner() * mixer.state;
  const std::int64_t k = mixer.rank * heads() * mixer.state;
  const std::int64_t v = inner();
  return layers * (angle + ssm + k + v) * static_cast<std::int64_t>(sizeof(float));
}

ModelConfig preset(const std::string& name) {
  for (const PresetSize& size : kSizes) {
    const bool siso = name == std::string("siso-") + size.name;
    const bool mimo = name == std::string("mimo-") + size.name;
    if (!siso && !mimo) continue;
    ModelConfig config;
    config.width = size.width;
    config.layers = size.layers;
    config.mlp_hidden =
        round_up(mimo ? size.mimo_hidden : size.siso_hidden, ModelConfig::kMlpMultiple);
    config.vocab = 128256;
    config.mixer.mimo = mimo;
    config.mixer.rank = mimo ? 4 : 1;
    config.mixer.chunk_size = mimo ? 16 : 64;
    return config;
  }
  std::string known;
  for (const std::string& each : preset_names()) known += (known.empty() ? "" : ", ") + each;
  fail(ErrorCode::kBadInput, "there is no preset \"", name, "\"; expected one of ", known,
       "; choose one, or give a config.json");
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const char* kind : {"siso-", "mimo-"}) {
    for (const PresetSize& size : kSizes) names.push_back(std::string(kind) + size.name);
  }
  return names;
}

void check_config(const ModelConfig& config) {
  check_range("d_model", config.width, 1, kMaxWidth);
  check_range("the MLP's hidden width", config.mlp_hidden, 0, kMaxHidden);
  check_range("n_layer", config.layers, 1, kMaxLayers);
  check_range("vocab_size", config.vocab, 1, kMaxVocab);
  check_range("pad_vocab_size_multiple", config.vocab_multiple, 1, kMaxVocab);
  check_range("vocab_size, padded,", config.padded_vocab(), 1, kMaxVocab);
  check_mixer(config.mixer);
  check_range("expand * d_model", config.inner(), 1, kMaxInner);
  check_input(config.inner() % config.mixer.head_dim == 0, "expand * d_model is ", config.inner(),
              ", headdim is ", config.mixer.head_dim,
              "; expected headdim to divide expand * d_model; correct one of them");
  check_input(config.heads() % config.mixer.groups == 0, "ngroups is ", config.mixer.groups,
              " with ", config.heads(), " heads; expected ngroups to divide the heads; correct it");
  check_range("the number of rows of in_proj", config.in_proj_rows(), 1, kMaxInProjRows);
}

std::vector<TensorSpec> tensor_specs(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  specs.push_back({"backbone.embedding.weight", {config.padded_vocab(), config.width}, true});
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    add_layer_specs(config, "backbone.layers." + std::to_string(layer) + ".", specs);
  }
  specs.push_back({"backbone.norm_f.weight", {config.width}});
  if (!config.tied_embeddings) {
    specs.push_back({"lm_head.weight", {config.padded_vocab(), config.width}, true});
  }
  return specs;
}

}  // namespace mamba3
