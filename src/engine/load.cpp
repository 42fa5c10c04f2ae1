// From a folder to a model with its tokenizer.
#include <memory>

#include "core/check.h"
#include "core/gpu.h"
#include "engine/checkpoint_files.h"
#include "io/config_file.h"
#include "mamba3/engine.h"
#include "model/memory_needed.h"
#include "model/mixer.h"
#include "model/weights.h"

namespace mamba3 {
namespace {

ComputeDType choose_compute(const LoadOptions& options, const TensorFile& file) {
  if (options.compute) return *options.compute;
  return compute_as_stored(file);
}

}  // namespace

Checkpoint load_checkpoint(const std::filesystem::path& path, const LoadOptions& options,
                           Context& ctx) {
  CheckpointFiles files = open_checkpoint_files(path);
  choose_a_activation(files.config, options.a_activation, ctx);
  const ModelOptions model_options{choose_compute(options, *files.weights), options.strict};

  check_layers(files.config, ctx);
  if (ctx.gpu()) {
    check_tensors(files.config, files.weights->tensors);
    const std::int64_t weights_bytes = resident_bytes(files.config, files.weights->tensors);
    check_memory({files.config, weights_bytes}, options.batch, ctx.gpu()->info());
  }

  Checkpoint checkpoint;
  checkpoint.tokenizer = find_tokenizer(files.folder, options.tokenizer);
  checkpoint.model =
      Model::create(files.config, files.weights->tensors, files.weights, model_options, ctx);
  checkpoint.eos_ids = read_generation_config(files.folder).eos_token_ids;
  if (checkpoint.tokenizer) {
    check_vocabulary(*checkpoint.tokenizer, files.config);
    const std::optional<std::int32_t> end = checkpoint.tokenizer->end_of_text();
    if (checkpoint.eos_ids.empty() && end) checkpoint.eos_ids.push_back(*end);
  }
  return checkpoint;
}

}  // namespace mamba3
