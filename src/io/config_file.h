// config.json and generation_config.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "mamba3/config.h"

namespace mamba3 {

// Reads config.json of the package, with the package's defaults for missing keys. mlp_hidden is the
// package's rounding of d_intermediate; the width of a checkpoint's
// fc1.weight, where there is one, is the true one. Refuses other layer types ("this is Mamba-1/2:
// not supported yet"), attention layers, LayerNorm, bad types and ranges.
ModelConfig read_config(const std::filesystem::path& path);
// The same for a model that is to be made: a key that means nothing, but whose name is nearly that
// of one that does, is refused. Released checkpoints have many other keys, so they are not asked.
ModelConfig read_new_config(const std::filesystem::path& path);
ModelConfig parse_config(const std::string& json_text, const std::string& origin,
                         bool by_hand = false);
// Takes the MLP's width from fc1.weight: the package rounds it, and releases differ in how; the
// tensor knows.
void fit_mlp_to_weights(ModelConfig& config, const std::map<std::string, TensorRef>& tensors);
// What the package reads back; records the A activation in ssm_cfg.a_activation.
std::string config_to_json(const ModelConfig& config);

struct GenerationConfig {
  std::vector<std::int32_t> eos_token_ids;
};
// eos_token_id of generation_config.json, else of config.json (a number or a list), else empty.
GenerationConfig read_generation_config(const std::filesystem::path& folder);

}  // namespace mamba3
