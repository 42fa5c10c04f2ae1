#include "io/config_file.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string_view>

#include "core/check.h"
#include "core/nearest.h"
#include "core/quote.h"
#include "io/bytes.h"
#include "io/json.h"
#include "io/mapped_file.h"

namespace mamba3 {
namespace {

using nlohmann::json;

// What else stands in files of the package and of libraries that it is used with.
constexpr std::string_view kOtherKeys[] = {
    "attn_cfg",      "residual_in_fp32", "fused_add_norm", "architectures",
    "model_type",    "torch_dtype",      "dtype",          "transformers_version",
    "_name_or_path", "bos_token_id",     "eos_token_id",   "pad_token_id"};

std::string shown(const json& value) {
  return quote(value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', true));
}

// One JSON object with typed, checked look-ups that name the key in their errors.
class Fields {
 public:
  Fields(const json& object, std::string origin) : object_(object), origin_(std::move(origin)) {
    check_input(object.is_object(), origin_, " is ", object.type_name(),
                "; expected a JSON object; correct the file");
  }

  std::int64_t integer(const char* key, std::int64_t missing) const {
    const json* value = find(key);
    if (value == nullptr) return missing;
    if (!value->is_number_integer()) refuse(key, *value, "an integer");
    if (value->is_number_unsigned() &&
        value->get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max()) {
      refuse(key, *value, "an integer of at most 63 bits");
    }
    return value->get<std::int64_t>();
  }
  double number(const char* key, double missing) const {
    const json* value = find(key);
    if (value == nullptr) return missing;
    if (!value->is_number()) refuse(key, *value, "a number");
    return value->get<double>();
  }
  bool boolean(const char* key, bool missing) const {
    const json* value = find(key);
    if (value == nullptr) return missing;
    if (!value->is_boolean()) refuse(key, *value, "true or false");
    return value->get<bool>();
  }
  std::optional<std::string> text(const char* key) const {
    const json* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) refuse(key, *value, "a text");
    return value->get<std::string>();
  }
  const json* find(const char* key) const {
    asked_.emplace_back(key);
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  [[noreturn]] void refuse(const char* key, const json& value, const char* expected) const {
    fail(ErrorCode::kBadInput, origin_, ": ", key, " is ", shown(value), ", a JSON ",
         value.type_name(), "; expected ", expected, "; correct the file");
  }
  // Keys that nobody has asked for, but whose names are nearly those of some.
  void refuse_misspelt() const {
    for (const std::string& key : unknown()) {
      const std::string nearest = nearest_name(key, asked_);
      check_input(nearest.empty(), origin_, " has a key ", quote(key),
                  " that means nothing; expected known keys; perhaps ", nearest);
    }
  }
  // Any but `others`, which mean nothing here.
  void refuse_unknown(std::span<const std::string_view> others) const {
    refuse_misspelt();
    std::string known;
    for (const std::string& name : asked_) known += (known.empty() ? "" : ", ") + name;
    for (const std::string& key : unknown()) {
      check_input(std::ranges::find(others, key) != others.end(), origin_, " has a key ",
                  quote(key), " that means nothing; expected one of ", known, "; remove it");
    }
  }

 private:
  std::vector<std::string> unknown() const {
    std::vector<std::string> out;
    for (const auto& [key, value] : object_.items()) {
      if (std::ranges::find(asked_, key) == asked_.end()) out.push_back(key);
    }
    return out;
  }

  const json& object_;
  std::string origin_;
  mutable std::vector<std::string> asked_;
};

void check_layer_type(const std::optional<std::string>& layer, const std::string& origin) {
  if (layer == "Mamba3") return;
  if (!layer || layer == "Mamba1" || layer == "Mamba2") {
    fail(ErrorCode::kBadInput, origin, ": ssm_cfg.layer is ",
         layer ? quote(*layer) : "missing, which means Mamba-1", "; this is ",
         layer == "Mamba2" ? "Mamba-2" : "Mamba-1",
         ": not supported yet; expected \"Mamba3\"; choose a Mamba-3 checkpoint");
  }
  fail(ErrorCode::kBadInput, origin, ": ssm_cfg.layer is ", quote(*layer),
       ", a layer type that is not known; expected \"Mamba3\"; choose a Mamba-3 checkpoint");
}

Rope parse_rope(const Fields& fields, const std::string& origin) {
  const std::string name = fields.text("rope").value_or(rope_name(Rope::kDataDependent));
  try {
    return rope_named(name);
  } catch (const Error& error) {
    fail(error.code(), origin, ": ssm_cfg.", error.what(), "; correct the file");
  }
}

Mamba3Config parse_mixer(const json& object, const std::string& origin, bool by_hand) {
  const Fields fields(object, origin + ": ssm_cfg");
  check_layer_type(fields.text("layer"), origin);
  Mamba3Config mixer;
  mixer.state = fields.integer("d_state", mixer.state);
  mixer.expand = fields.integer("expand", mixer.expand);
  mixer.head_dim = fields.integer("headdim", mixer.head_dim);
  mixer.groups = fields.integer("ngroups", mixer.groups);
  mixer.rope_fraction = fields.number("rope_fraction", mixer.rope_fraction);
  mixer.rope = parse_rope(fields, origin);
  mixer.a_floor = fields.number("A_floor", mixer.a_floor);
  mixer.out_norm = fields.boolean("is_outproj_norm", mixer.out_norm);
  mixer.mimo = fields.boolean("is_mimo", mixer.mimo);
  // Read either way, so that a wrong type is reported; it means something only for MIMO.
  const std::int64_t rank = fields.integer("mimo_rank", 4);
  mixer.rank = mixer.mimo ? rank : 1;
  mixer.chunk_size = fields.integer("chunk_size", mixer.chunk_size);
  if (const std::optional<std::string> name = fields.text("a_activation")) {
    mixer.a_activation_recorded = true;
    if (*name == a_activation_name(AActivation::kSoftplus)) {
      mixer.a_activation = AActivation::kSoftplus;
    } else {
      check_input(*name == a_activation_name(AActivation::kHeavyTail), origin,
                  ": ssm_cfg.a_activation is ", quote(*name),
                  "; expected \"heavy-tail\" or \"softplus\"; correct the file");
    }
  }
  if (by_hand) fields.refuse_misspelt();  // others the package ignores
  return mixer;
}

void refuse_other_architectures(const Fields& fields, const std::string& origin) {
  check_input(fields.boolean("rms_norm", true), origin,
              ": rms_norm is false: LayerNorm is not supported; expected true; choose another "
              "checkpoint");
  const json* attention = fields.find("attn_layer_idx");
  if (attention == nullptr) return;
  if (!attention->is_array()) fields.refuse("attn_layer_idx", *attention, "a list");
  check_input(attention->empty(), origin, ": attn_layer_idx is ", shown(*attention),
              ": attention layers are not supported yet; expected an empty list; choose a "
              "checkpoint without attention");
}

std::int32_t parse_token_id(const json& value, const std::string& origin) {
  const bool fits =
      value.is_number_integer() && value >= 0 && value <= std::numeric_limits<std::int32_t>::max();
  check_input(fits, origin, ": eos_token_id is or holds ", shown(value),
              "; expected token ids, 0 or more; correct the file");
  return value.get<std::int32_t>();
}

// Empty when the file or the key is not there.
std::vector<std::int32_t> read_eos_ids(const std::filesystem::path& path) {
  if (!is_there(path)) return {};
  const std::string origin = quote(path.string());
  const std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  const json document = parse_json_limited(text_of(file->bytes()), origin);
  const json* value = Fields(document, origin).find("eos_token_id");
  std::vector<std::int32_t> ids;
  if (value == nullptr || value->is_null()) return ids;
  if (!value->is_array()) return {parse_token_id(*value, origin)};
  for (const json& each : *value) ids.push_back(parse_token_id(each, origin));
  return ids;
}

}  // namespace

ModelConfig parse_config(const std::string& json_text, const std::string& origin, bool by_hand) {
  const json document = parse_json_limited(json_text, origin);
  const Fields fields(document, origin);
  const json* ssm = fields.find("ssm_cfg");
  ModelConfig config;
  config.mixer = parse_mixer(ssm == nullptr ? json::object() : *ssm, origin, by_hand);
  refuse_other_architectures(fields, origin);
  config.width = fields.integer("d_model", config.width);
  config.layers = fields.integer("n_layer", config.layers);
  config.vocab = fields.integer("vocab_size", config.vocab);
  config.vocab_multiple = fields.integer("pad_vocab_size_multiple", config.vocab_multiple);
  config.tied_embeddings = fields.boolean("tie_embeddings", config.tied_embeddings);
  const std::int64_t hidden = fields.integer("d_intermediate", 0);
  constexpr std::int64_t kMultiple = ModelConfig::kMlpMultiple;
  const bool can_round = hidden < std::numeric_limits<std::int64_t>::max() - kMultiple;
  config.mlp_hidden =
      hidden > 0 && can_round ? (hidden + kMultiple - 1) / kMultiple * kMultiple : hidden;
  if (by_hand) fields.refuse_unknown(kOtherKeys);
  try {
    check_config(config);
  } catch (const Error& error) {
    fail(error.code(), origin, ": ", error.what());
  }
  return config;
}

ModelConfig read_config(const std::filesystem::path& path) {
  const std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  return parse_config(std::string(text_of(file->bytes())), quote(path.string()));
}

ModelConfig read_new_config(const std::filesystem::path& path) {
  const std::shared_ptr<const MappedFile> file = MappedFile::open(path);
  return parse_config(std::string(text_of(file->bytes())), quote(path.string()), true);
}

void fit_mlp_to_weights(ModelConfig& config, const std::map<std::string, TensorRef>& tensors) {
  const auto fc1 = tensors.find("backbone.layers.0.mlp.fc1.weight");
  if (fc1 == tensors.end() || fc1->second.shape.size() != 2) return;
  if (config.mlp_hidden > 0 && fc1->second.shape[0] > 0 && fc1->second.shape[0] % 2 == 0) {
    config.mlp_hidden = fc1->second.shape[0] / 2;
  }
}

std::string config_to_json(const ModelConfig& config) {
  const Mamba3Config& mixer = config.mixer;
  nlohmann::ordered_json ssm{{"layer", "Mamba3"},        {"d_state", mixer.state},
                             {"expand", mixer.expand},   {"headdim", mixer.head_dim},
                             {"ngroups", mixer.groups},  {"rope_fraction", mixer.rope_fraction},
                             {"A_floor", mixer.a_floor}, {"is_outproj_norm", mixer.out_norm},
                             {"is_mimo", mixer.mimo}};
  if (mixer.mimo) ssm["mimo_rank"] = mixer.rank;
  // Another key would be refused by the package, as it should be where it has no such layers.
  if (mixer.rope != Rope::kDataDependent) ssm["rope"] = rope_name(mixer.rope);
  ssm["chunk_size"] = mixer.chunk_size;
  ssm["a_activation"] = a_activation_name(mixer.a_activation);
  const nlohmann::ordered_json document{{"d_model", config.width},
                                        {"d_intermediate", config.mlp_hidden},
                                        {"n_layer", config.layers},
                                        {"vocab_size", config.vocab},
                                        {"ssm_cfg", ssm},
                                        {"attn_layer_idx", nlohmann::ordered_json::array()},
                                        {"attn_cfg", nlohmann::ordered_json::object()},
                                        {"rms_norm", true},
                                        {"residual_in_fp32", true},
                                        {"fused_add_norm", true},
                                        {"pad_vocab_size_multiple", config.vocab_multiple},
                                        {"tie_embeddings", config.tied_embeddings}};
  return document.dump(2) + "\n";
}

GenerationConfig read_generation_config(const std::filesystem::path& folder) {
  GenerationConfig out;
  for (const char* name : {"generation_config.json", "config.json"}) {
    out.eos_token_ids = read_eos_ids(folder / name);
    if (!out.eos_token_ids.empty()) break;
  }
  return out;
}

}  // namespace mamba3
