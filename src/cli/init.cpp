// init: a checkpoint of random weights, as the authors initialise a model before training.
#include "model/init.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <random>

#include "cli/checkpoint_folder.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "io/config_file.h"

namespace mamba3::cli {
namespace {

struct InitOptions {
  CommonOptions common;
  WriteOptions write;
  std::string preset, config;
};

ModelConfig chosen_config(const InitOptions& options) {
  if (options.preset.empty() == options.config.empty()) {
    fail(ErrorCode::kUsage, options.preset.empty() ? "neither" : "both",
         " of --preset and --config are given; expected exactly one; choose a size");
  }
  ModelConfig config =
      options.preset.empty() ? read_new_config(options.config) : preset(options.preset);
  check_config(config);
  const auto activation = load_options(options.common).a_activation;
  if (activation) config.mixer.a_activation = *activation;
  config.mixer.a_activation_recorded = true;
  return config;
}

int run_init(const InitOptions& options) {
  const ModelConfig config = chosen_config(options);
  SideFiles side;
  side.tokenizer = options.common.tokenizer;
  if (!side.tokenizer.empty()) Tokenizer::load(side.tokenizer);
  Context ctx = make_context(options.common, Device{});
  const std::uint64_t seed = options.common.seed.value_or(std::random_device{}());
  const DType dtype = options.common.dtype == "fp32" ? DType::kF32 : DType::kBf16;
  const InitialTensors initial = init_tensors(config, dtype, seed, ctx);
  check_interrupt();
  Json report = write_checkpoint(config, initial.tensors, side, options.write, options.common);
  report["seed"] = seed;
  if (options.common.json) {
    write_json(report);
  } else if (!options.common.quiet) {
    message(str("mamba3: wrote ", options.write.output, ": ", config.parameters(), " parameters, ",
                human_bytes(report["bytes"].get<double>()), ", seed ", seed));
  }
  return 0;
}

}  // namespace

Run add_init(CLI::App& app) {
  auto options = std::make_shared<InitOptions>();
  std::string names;
  for (const std::string& name : preset_names()) names += (names.empty() ? "" : ", ") + name;
  app.add_option("--preset", options->preset, "one of the authors' sizes: " + names)
      ->type_name("NAME");
  app.add_option("--config", options->config, "config.json with other sizes")->type_name("FILE");
  add_write_options(app, options->write);
  add_common_options(app, options->common);
  return [options] { return run_init(*options); };
}

}  // namespace mamba3::cli
