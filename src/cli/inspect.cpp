// inspect: what a checkpoint is and what it needs, from its headers and small tensors alone.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/inspect_gpu.h"
#include "core/check.h"
#include "engine/checkpoint_files.h"
#include "io/config_file.h"
#include "model/memory_needed.h"
#include "model/mixer.h"
#include "model/weights.h"
#include "ops/mamba3_scan/mamba3_scan.h"

namespace mamba3::cli {
namespace {

struct InspectOptions {
  CommonOptions common;
  bool tensors = false;
  std::int64_t batch = 1;
  std::int64_t context = 2048;
};

struct Findings {
  CheckpointFiles files;
  std::optional<GpuPlan> gpu;      // when the device is one
  std::int64_t weights_bytes = 0;  // as stored, each tensor once
  std::int64_t state_bytes = 0;    // of one sequence
  std::int64_t chunk_tokens = 0;
};

Findings look(const InspectOptions& options, Device device) {
  Findings found;
  found.files = open_checkpoint_files(model_folder(options.common));
  ModelConfig& config = found.files.config;
  check_tensors(config, found.files.weights->tensors);
  const auto activation = load_options(options.common).a_activation;
  if (activation) config.mixer.a_activation = *activation;
  for (const TensorSpec& spec : tensor_specs(config)) {
    found.weights_bytes += found.files.weights->tensors.at(spec.name).bytes();
  }
  found.state_bytes = config.state_bytes();
  const Mamba3Dims dims = mixer_dims(config);
  check_dims(dims);
  check_input(found.state_bytes < INT64_MAX / 4 / options.batch, "the state of a sequence is ",
              found.state_bytes, " bytes; expected room for --batch ", options.batch,
              "; choose a smaller batch");
  found.chunk_tokens = mamba3_scan_chunk_tokens(dims);
  if (device.kind == DeviceKind::kCuda) {
    const ModelSize size{config, resident_bytes(config, found.files.weights->tensors)};
    const auto asked = load_options(options.common).compute;
    found.gpu = plan_for_gpu(size, asked.value_or(compute_as_stored(*found.files.weights)),
                             options.batch, device.index);
  }
  return found;
}

Json tensors_json(const Findings& found) {
  Json tensors = Json::array();
  for (const TensorSpec& spec : tensor_specs(found.files.config)) {
    const TensorRef& tensor = found.files.weights->tensors.at(spec.name);
    tensors.push_back(
        {{"name", spec.name}, {"dtype", dtype_name(tensor.dtype)}, {"shape", tensor.shape}});
  }
  return tensors;
}

// What a batch of sequences needs at once. The states do not grow with the context.
Json memory_json(const InspectOptions& options, const Findings& found) {
  if (found.gpu) return gpu_memory_json(*found.gpu, options.context);
  const std::int64_t states = options.batch * found.state_bytes;
  const std::int64_t logits =
      options.batch * found.files.config.padded_vocab() * std::int64_t{sizeof(float)};
  return {{"batch", options.batch},
          {"context", options.context},
          {"weights_bytes", found.weights_bytes},
          {"states_bytes", states},
          {"logits_bytes", logits},
          {"total_bytes", found.weights_bytes + states + logits}};
}

std::string rope_text(const Mamba3Config& mixer) {
  if (mixer.rope == Rope::kNone) return "none";
  return str(mixer.rope_fraction,
             mixer.rope == Rope::kStandard ? ", standard: not the authors' format" : "");
}

std::string mixer_name(const ModelConfig& config) {
  return config.mixer.mimo ? str("Mamba-3 MIMO, rank ", config.mixer.rank) : "Mamba-3 SISO";
}

Json common_json(const Findings& found) {
  const ModelConfig& config = found.files.config;
  return {{"config", Json::parse(config_to_json(config))},
          {"parameters", config.parameters()},
          {"weights_bytes", found.weights_bytes},
          {"state_bytes_per_sequence", found.state_bytes},
          {"a_activation", a_activation_name(config.mixer.a_activation)},
          {"a_activation_recorded", config.mixer.a_activation_recorded}};
}

Json report_json(const InspectOptions& options, const Findings& found) {
  const ModelConfig& config = found.files.config;
  const std::string mixer = config.mixer.mimo ? "mamba3-mimo" : "mamba3-siso";
  const std::string prefill = found.gpu ? "mamba3_scan, " + path_name(found.gpu->scan)
                                        : str("chunked scan, ", found.chunk_tokens, " tokens");
  const std::string decode = found.gpu ? "mamba3_step, " + path_name(found.gpu->step) : "step";
  Json layers = Json::array();
  for (std::int64_t i = 0; i < config.layers; ++i) {
    layers.push_back({{"mixer", mixer},
                      {"mlp", config.mlp_hidden > 0 ? "swiglu" : "none"},
                      {"prefill", prefill},
                      {"decode", decode}});
  }
  Json report = common_json(found);
  report["layers"] = std::move(layers);
  if (found.gpu) report["gpu"] = gpu_json(*found.gpu);
  report["memory"] = memory_json(options, found);
  report["tensors"] = tensors_json(found);
  return report;
}

std::string tensors_text(const Findings& found) {
  std::string text = "\ntensors\n";
  for (const TensorSpec& spec : tensor_specs(found.files.config)) {
    const TensorRef& tensor = found.files.weights->tensors.at(spec.name);
    text += str("  ", spec.name, "  ", dtype_name(tensor.dtype), "  ", shape_string(tensor.shape),
                "\n");
  }
  return text;
}

std::string model_text(const Findings& found) {
  const ModelConfig& config = found.files.config;
  const Mamba3Config& mixer = config.mixer;
  return str("model         ", mixer_name(config), ", ", config.parameters(), " parameters\n",
             "layers        ", config.layers, " of width ", config.width, ", ",
             config.mlp_hidden > 0 ? str("SwiGLU MLP of ", config.mlp_hidden) : "no MLP", "\n",
             "mixer         ", config.heads(), " heads of ", mixer.head_dim, ", state ",
             mixer.state, ", ", mixer.groups, " group(s), rope ", rope_text(mixer),
             mixer.out_norm ? ", out-norm" : "", "\n", "vocabulary    ", config.vocab,
             ", padded to ", config.padded_vocab(),
             config.tied_embeddings ? ", tied head" : ", own head", "\n", "A activation  ",
             a_activation_name(mixer.a_activation),
             mixer.a_activation_recorded ? ", recorded\n" : ", not recorded: see --a-activation\n");
}

std::string report_text(const InspectOptions& options, const Findings& found) {
  if (found.gpu) return model_text(found) + gpu_text(*found.gpu, options.context);
  const Json memory = memory_json(options, found);
  const auto bytes_of = [&](const char* key) { return human_bytes(memory[key].get<double>()); };
  return str(model_text(found), "path          every layer: chunked scan (", found.chunk_tokens,
             " tokens) for prompts, step for decoding\n", "\nmemory for ", options.batch,
             " sequence(s)\n", "  weights     ", bytes_of("weights_bytes"), "\n", "  states      ",
             bytes_of("states_bytes"), ", the same after 1 and after ", options.context,
             " tokens\n", "  logits      ", bytes_of("logits_bytes"), "\n", "  together    ",
             bytes_of("total_bytes"), "\n");
}

int run_inspect(const InspectOptions& options) {
  const Findings found = look(options, choose_device(options.common));
  if (options.common.json) {
    write_json(report_json(options, found));
  } else {
    write_out(report_text(options, found) + (options.tensors ? tensors_text(found) : ""));
  }
  return 0;
}

}  // namespace

Run add_inspect(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  app.add_flag("--tensors", options->tensors, "list the tensors too (--json always does)");
  app.add_option("--batch", options->batch, "memory for N sequences at once")
      ->type_name("N")
      ->check(whole_number(1, std::int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--context", options->context, "memory after N tokens of each")
      ->type_name("N")
      ->check(whole_number(1))
      ->capture_default_str();
  add_common_options(app, options->common);
  return [options] { return run_inspect(*options); };
}

}  // namespace mamba3::cli
