#include "cli/checkpoint_folder.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <system_error>

#include "cli/options.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "core/quote.h"
#include "io/atomic_file.h"
#include "io/config_file.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kBinName = "pytorch_model.bin";

[[noreturn]] void refuse(const fs::path& path, const std::error_code& ec) {
  fail(ErrorCode::kBadInput, "cannot write ", quote(path.string()), ": ", ec.message(),
       "; expected a place that can be written, with room; choose another -o or make room");
}

void check_done(const std::error_code& ec, const fs::path& path) {
  if (ec) refuse(path, ec);
}

bool is_side_name(const std::string& name) {
  return std::ranges::find(kSideNames, name) != std::end(kSideNames);
}

bool is_weights_name(const std::string& name) {
  return name == kBinName || name == "model.safetensors" ||
         name == "model.safetensors.index.json" ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

std::vector<NamedTensor> in_order(const ModelConfig& config,
                                  const std::map<std::string, TensorRef>& tensors, bool bin) {
  std::vector<NamedTensor> ordered;
  for (const TensorSpec& spec : tensor_specs(config)) {
    ordered.push_back({spec.name, tensors.at(spec.name)});
  }
  // The package lists a tied head too; equal pointers share a storage.
  if (bin && config.tied_embeddings) ordered.push_back({"lm_head.weight", ordered[0].tensor});
  return ordered;
}

void write_side_files(const SideFiles& side, const fs::path& folder) {
  std::error_code ec;
  for (const fs::path& from : side.copied) {
    fs::copy_file(from, folder / from.filename(), ec);
    check_done(ec, folder / from.filename());
  }
  if (!side.tokenizer.empty()) {
    const bool json = side.tokenizer.extension() == ".json";
    const fs::path to = folder / (json ? "tokenizer.json" : "tokenizer.model");
    fs::copy_file(side.tokenizer, to, fs::copy_options::overwrite_existing, ec);
    check_done(ec, to);
  }
  const fs::path generation = folder / "generation_config.json";
  if (!side.eos_ids.empty() && !fs::exists(generation)) {
    write_atomically(generation, Json({{"eos_token_id", side.eos_ids}}).dump(2) + "\n");
  }
}

// The folder's files, largest concern first: a reader that comes too early finds no config.json.
std::vector<fs::path> files_of(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) {
    const bool a_config = a.filename() == "config.json", b_config = b.filename() == "config.json";
    return a_config != b_config ? b_config : a < b;
  });
  return files;
}

}  // namespace

CheckpointFolder::CheckpointFolder(const fs::path& target, bool force) {
  std::error_code ec;
  target_ = fs::weakly_canonical(fs::absolute(target), ec);
  if (ec || target_.empty()) target_ = target;
  if (!target_.has_filename()) target_ = target_.parent_path();
  const fs::file_status status = fs::status(target_, ec);
  check_input(!fs::exists(status) || fs::is_directory(status), quote(target.string()),
              " is a file; expected a folder, or a name for a new one; choose another -o");
  const bool empty = !fs::exists(status) || fs::is_empty(target_, ec);
  check_input(empty || force, quote(target.string()),
              " is not empty; expected a new or an empty folder; choose another -o, or replace its "
              "files with --force");
  const fs::path parent = target_.parent_path();
  fs::create_directories(parent, ec);
  check_done(ec, parent);
  const fs::path staging = parent / str(".", target_.filename().string(), ".", ::getpid(), ".tmp");
  if (!fs::create_directory(staging, ec)) {
    refuse(staging, ec ? ec : std::make_error_code(std::errc::file_exists));
  }
  staging_ = staging;
}

CheckpointFolder::~CheckpointFolder() {
  std::error_code ignored;
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
}

void CheckpointFolder::commit(bool with_side_files) {
  std::error_code ec;
  fs::rename(staging_, target_, ec);  // also onto an empty folder
  if (ec == std::errc::directory_not_empty || ec == std::errc::file_exists) {
    return move_into_place(with_side_files);
  }
  check_done(ec, target_);
  staging_.clear();
}

void CheckpointFolder::move_into_place(bool with_side_files) {
  std::error_code ec;
  std::vector<std::string> written;
  for (const fs::path& from : files_of(staging_)) {
    written.push_back(from.filename().string());
    fs::rename(from, target_ / from.filename(), ec);
    check_done(ec, target_ / from.filename());
  }
  // Weights of before, which a reader would find first or beside the new ones, and a tokenizer that
  // is not theirs.
  for (const fs::path& old : files_of(target_)) {
    const std::string name = old.filename().string();
    const bool belongs = is_weights_name(name) || (with_side_files && is_side_name(name));
    if (!belongs || std::ranges::find(written, name) != written.end()) continue;
    fs::remove(old, ec);
    check_done(ec, old);
  }
}

void add_write_options(CLI::App& app, WriteOptions& options) {
  app.add_option("-o,--output", options.output, "folder to write")->type_name("DIR")->required();
  app.add_option("--format", options.format, "safetensors, or bin: the package's pytorch_model.bin")
      ->type_name("NAME")
      ->check(one_of({"safetensors", "bin"}))
      ->capture_default_str();
  app.add_option("--shard-bytes", options.shard_bytes, "largest size of a safetensors file")
      ->type_name("N")
      ->check(whole_number(1))
      ->capture_default_str();
  app.add_flag("--force", options.force, "replace the files of a folder that is not empty");
}

Json write_checkpoint(const ModelConfig& config, const std::map<std::string, TensorRef>& tensors,
                      const SideFiles& side, const WriteOptions& options,
                      const CommonOptions& common) {
  const bool bin = options.format == "bin";
  check_input(!bin || config.mixer.rope == Rope::kDataDependent, "the model's rope is ",
              rope_name(config.mixer.rope), ", which the authors' package does not have; expected ",
              rope_name(Rope::kDataDependent),
              " in a file of its format; write --format "
              "safetensors");
  CheckpointFolder folder(options.output, options.force);
  const std::vector<NamedTensor> ordered = in_order(config, tensors, bin);
  ProgressBar bar(common, "writing", "bytes");
  const Progress progress = [&](std::int64_t done, std::int64_t all) { bar.update(done, all); };
  if (bin) {
    write_torch_bin(folder.staging() / kBinName, ordered, progress);
  } else {
    write_safetensors_folder(folder.staging(), ordered, {{"format", "pt"}}, options.shard_bytes,
                             progress);
  }
  write_side_files(side, folder.staging());
  write_atomically(folder.staging() / "config.json", config_to_json(config));
  check_interrupt();
  Json files = Json::array();
  std::int64_t bytes = 0;
  for (const fs::path& file : files_of(folder.staging())) {
    files.push_back(file.filename().string());
    bytes += static_cast<std::int64_t>(fs::file_size(file));
  }
  folder.commit(side.all);
  bar.clear();
  return {{"output", options.output},
          {"format", options.format},
          {"parameters", config.parameters()},
          {"tensors", ordered.size()},
          {"bytes", bytes},
          {"a_activation", a_activation_name(config.mixer.a_activation)},
          {"files", std::move(files)}};
}

}  // namespace mamba3::cli
