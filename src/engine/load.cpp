// From a folder to a model with its tokenizer.
#include <memory>

#include "core/check.h"
#include "io/config_file.h"
#include "io/tensor_file.h"
#include "mamba3/engine.h"

namespace mamba3 {
namespace {

// The package rounds the MLP's width, and releases differ in how; the tensor knows.
void fit_mlp_to_weights(ModelConfig& config, const TensorFile& file) {
  const auto fc1 = file.tensors.find("backbone.layers.0.mlp.fc1.weight");
  if (fc1 == file.tensors.end() || fc1->second.shape.size() != 2) return;
  if (config.mlp_hidden > 0 && fc1->second.shape[0] > 0 && fc1->second.shape[0] % 2 == 0) {
    config.mlp_hidden = fc1->second.shape[0] / 2;
  }
}

void choose_a_activation(ModelConfig& config, const LoadOptions& options, Context& ctx) {
  if (options.a_activation) {
    config.mixer.a_activation = *options.a_activation;
  } else if (!config.mixer.a_activation_recorded) {
    ctx.log(LogLevel::kInfo,
            "config.json does not say which A activation the model was trained with; using "
            "heavy-tail (--a-activation softplus for models of the PyPI release)");
  }
}

ComputeDType choose_compute(const LoadOptions& options, const TensorFile& file) {
  if (options.compute) return *options.compute;
  const auto it = file.tensors.find("backbone.embedding.weight");
  const bool bf16 = it != file.tensors.end() && it->second.dtype == DType::kBf16;
  return bf16 ? ComputeDType::kBf16 : ComputeDType::kF32;
}

std::shared_ptr<const Tokenizer> find_tokenizer(const std::filesystem::path& folder,
                                                const LoadOptions& options) {
  if (!options.tokenizer.empty()) return Tokenizer::load(options.tokenizer);
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    std::error_code ec;
    if (std::filesystem::exists(folder / name, ec)) return Tokenizer::load(folder / name);
  }
  return nullptr;
}

void check_vocabulary(const Checkpoint& checkpoint) {
  const std::int64_t ids = checkpoint.tokenizer->vocab();
  const std::int64_t rows = checkpoint.model->config().padded_vocab();
  check_input(ids <= rows, "the tokenizer has ", ids, " ids but the model only ", rows,
              "; expected the tokenizer that the model was trained with; check --tokenizer");
}

}  // namespace

Checkpoint load_checkpoint(const std::filesystem::path& folder, const LoadOptions& options,
                           Context& ctx) {
  ModelConfig config = read_config(folder / "config.json");
  auto file = std::make_shared<TensorFile>(read_folder_weights(folder));
  fit_mlp_to_weights(config, *file);
  choose_a_activation(config, options, ctx);
  const ModelOptions model_options{choose_compute(options, *file), options.strict};

  Checkpoint checkpoint;
  checkpoint.tokenizer = find_tokenizer(folder, options);
  checkpoint.model = Model::create(config, file->tensors, file, model_options, ctx);
  checkpoint.eos_ids = read_generation_config(folder).eos_token_ids;
  if (checkpoint.tokenizer) {
    check_vocabulary(checkpoint);
    const std::optional<std::int32_t> end = checkpoint.tokenizer->end_of_text();
    if (checkpoint.eos_ids.empty() && end) checkpoint.eos_ids.push_back(*end);
  }
  return checkpoint;
}

}  // namespace mamba3
