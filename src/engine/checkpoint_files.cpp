#include "engine/checkpoint_files.h"

#include "core/check.h"
#include "core/quote.h"
#include "io/config_file.h"

namespace mamba3 {
namespace {

TensorFile read_weights_file(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  if (name.ends_with(".index.json")) return read_safetensors_index(path);
  if (name.ends_with(".safetensors")) return read_safetensors(path);
  if (name.ends_with(".bin")) return read_torch_bin(path);
  fail(ErrorCode::kBadInput, quote(path.string()),
       " is neither a folder nor a weights file; expected a folder with config.json, or a "
       ".safetensors, .index.json or .bin file beside one; check -m");
}

}  // namespace

CheckpointFiles open_checkpoint_files(const std::filesystem::path& path) {
  std::error_code ec;
  const bool is_file = std::filesystem::is_regular_file(path, ec);
  CheckpointFiles files;
  files.folder = is_file ? path.parent_path() : path;
  files.config = read_config(files.folder / "config.json");
  files.weights = std::make_shared<const TensorFile>(is_file ? read_weights_file(path)
                                                             : read_folder_weights(path));
  fit_mlp_to_weights(files.config, files.weights->tensors);
  return files;
}

ComputeDType compute_as_stored(const TensorFile& weights) {
  const auto it = weights.tensors.find("backbone.embedding.weight");
  const bool bf16 = it != weights.tensors.end() && it->second.dtype == DType::kBf16;
  return bf16 ? ComputeDType::kBf16 : ComputeDType::kF32;
}

void choose_a_activation(ModelConfig& config, const std::optional<AActivation>& asked,
                         Context& ctx) {
  if (asked) {
    config.mixer.a_activation = *asked;
  } else if (!config.mixer.a_activation_recorded) {
    ctx.log(LogLevel::kInfo,
            "config.json does not say which A activation the model was trained with; using "
            "heavy-tail (--a-activation softplus for models of the PyPI release)");
  }
}

std::shared_ptr<const Tokenizer> find_tokenizer(const std::filesystem::path& folder,
                                                const std::filesystem::path& named) {
  if (!named.empty()) return Tokenizer::load(named);
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    std::error_code ec;
    if (std::filesystem::exists(folder / name, ec)) return Tokenizer::load(folder / name);
  }
  return nullptr;
}

void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& config) {
  const std::int64_t ids = tokenizer.vocab(), rows = config.padded_vocab();
  check_input(ids <= rows, "the tokenizer has ", ids, " ids but the model only ", rows,
              "; expected the tokenizer that the model was trained with; check --tokenizer");
}

}  // namespace mamba3
