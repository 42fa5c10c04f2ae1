// A checkpoint's files, opened: its config and its named tensors, before a model is made of them.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>

#include "io/tensor_file.h"
#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/model.h"
#include "mamba3/tokenizer.h"

namespace mamba3 {

struct CheckpointFiles {
  std::filesystem::path folder;
  ModelConfig config;  // the MLP's width as the weights have it
  std::shared_ptr<const TensorFile> weights;
};

// `path`: a folder with config.json and weights, or a weights file with config.json beside it.
CheckpointFiles open_checkpoint_files(const std::filesystem::path& path);

// bf16 when the matrices are bf16, else fp32.
ComputeDType compute_as_stored(const TensorFile& weights);

// The activation that is asked for, else the recorded one, else heavy-tail, which is then logged.
void choose_a_activation(ModelConfig& config, const std::optional<AActivation>& asked,
                         Context& ctx);

// `named` unless it is empty, else tokenizer.json or tokenizer.model in the folder, else null.
std::shared_ptr<const Tokenizer> find_tokenizer(const std::filesystem::path& folder,
                                                const std::filesystem::path& named);

// Refuses a tokenizer with more ids than the model has rows for.
void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& config);

}  // namespace mamba3
