// convert: a checkpoint's files to files of another format or type.
#include <CLI/CLI.hpp>
#include <cstring>
#include <memory>

#include "cli/checkpoint_folder.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "engine/checkpoint_files.h"
#include "io/config_file.h"
#include "model/weights.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

struct ConvertOptions {
  CommonOptions common;
  WriteOptions write;
  std::string out_dtype = "keep";
};

// What the package itself leaves in fp32 in a bf16 model.
bool stays_as_stored(std::string_view name) {
  for (const char* end :
       {".dt_bias", ".B_bias", ".C_bias", ".D", ".mimo_x", ".mimo_z", ".mimo_o"}) {
    if (name.ends_with(end)) return true;
  }
  return false;
}

// Tensors in the wanted type; those that change point into `memory`.
struct Converted {
  std::map<std::string, TensorRef> tensors;
  std::vector<std::unique_ptr<std::byte[]>> memory;

  void add(const std::string& name, const TensorRef& from, DType dtype) {
    if (from.dtype == dtype) {
      tensors[name] = from;
      return;
    }
    const std::vector<float> values = widen(from);
    TensorRef to{nullptr, dtype, from.shape};
    auto bytes = std::make_unique<std::byte[]>(static_cast<std::size_t>(to.bytes()));
    if (dtype == DType::kF32) {
      std::memcpy(bytes.get(), values.data(), values.size() * sizeof(float));
    } else {
      auto* narrow = reinterpret_cast<Bf16*>(bytes.get());
      for (std::size_t i = 0; i < values.size(); ++i) narrow[i] = to_bf16(values[i]);
    }
    to.data = bytes.get();
    tensors[name] = std::move(to);
    memory.push_back(std::move(bytes));
  }
};

Converted convert_tensors(const ConvertOptions& options, const CheckpointFiles& files) {
  Converted converted;
  const std::vector<TensorSpec> specs = tensor_specs(files.config);
  ProgressBar bar(options.common, "converting", "tensors");
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const std::string& name = specs[i].name;
    const TensorRef& tensor = files.weights->tensors.at(name);
    DType dtype = tensor.dtype;
    if (options.out_dtype == "fp32") dtype = DType::kF32;
    if (options.out_dtype == "bf16" && !stays_as_stored(name)) dtype = DType::kBf16;
    converted.add(name, tensor, dtype);
    bar.update(static_cast<std::int64_t>(i + 1), std::ssize(specs));
  }
  return converted;
}

SideFiles side_files(const ConvertOptions& options, const fs::path& folder) {
  SideFiles side;
  side.all = true;
  for (const char* name : kSideNames) {
    std::error_code ec;
    if (fs::is_regular_file(folder / name, ec)) side.copied.push_back(folder / name);
  }
  side.tokenizer = options.common.tokenizer;
  side.eos_ids = read_generation_config(folder).eos_token_ids;
  return side;
}

void report_non_finite(const ConvertOptions& options, const CheckpointFiles& files, Context& ctx) {
  const auto bad = find_non_finite(files.config, files.weights->tensors, ctx);
  if (bad.empty()) return;
  const std::string found =
      str(bad.size(), " tensors hold NaN or infinity, the first is ", bad.front());
  check_input(!options.common.strict, found,
              "; expected finite weights; the checkpoint is broken, or leave out --strict");
  ctx.log(LogLevel::kWarning, found + "; they are written as they are");
}

int run_convert(const ConvertOptions& options) {
  Context ctx = make_context(options.common, Device{});
  CheckpointFiles files = open_checkpoint_files(model_folder(options.common));
  check_tensors(files.config, files.weights->tensors);
  report_non_finite(options, files, ctx);
  choose_a_activation(files.config, load_options(options.common).a_activation, ctx);
  files.config.mixer.a_activation_recorded = true;
  if (!options.common.tokenizer.empty()) {
    check_vocabulary(*Tokenizer::load(options.common.tokenizer), files.config);
  }
  const Converted converted = convert_tensors(options, files);
  Json report = write_checkpoint(files.config, converted.tensors, side_files(options, files.folder),
                                 options.write, options.common);
  if (options.common.json) {
    report["dtype"] = options.out_dtype;
    write_json(report);
  } else if (!options.common.quiet) {
    message(str("mamba3: wrote ", options.write.output, ": ",
                human_bytes(report["bytes"].get<double>()), " in ", report["files"].size(),
                " files"));
  }
  return 0;
}

}  // namespace

Run add_convert(CLI::App& app) {
  auto options = std::make_shared<ConvertOptions>();
  add_write_options(app, options->write);
  app.add_option("--out-dtype", options->out_dtype,
                 "keep, fp32, or bf16 (what the package keeps in fp32 stays so)")
      ->type_name("NAME")
      ->check(one_of({"keep", "fp32", "bf16"}))
      ->capture_default_str();
  add_common_options(app, options->common);
  return [options] { return run_convert(*options); };
}

}  // namespace mamba3::cli
