#include "train/train_checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/hash.h"
#include "core/quote.h"
#include "io/atomic_file.h"
#include "io/bytes.h"
#include "io/config_file.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/tokenizer_utf8.h"

namespace mamba3 {
namespace fs = std::filesystem;
namespace {

using nlohmann::ordered_json;

constexpr const char* kFormat = "mamba3 training 1";
constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kMomentsName = "optimizer.safetensors";
constexpr const char* kStatesName = "states.safetensors";
constexpr const char* kConfigName = "config.json";
constexpr const char* kRecordName = "training.json";

fs::path checkpoints_of(const fs::path& run) {
  return run / "checkpoints";
}

fs::path folder_of(const fs::path& run, std::int64_t step) {
  return checkpoints_of(run) / str("step-", step);
}

void check_done(const std::error_code& ec, const fs::path& path) {
  check_input(!ec, "cannot write ", quote(path.string()), ": ", ec.message(),
              "; expected a folder that can be written, with room; make room");
}

// The step that a folder is named after.
std::optional<std::int64_t> step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  if (!name.starts_with("step-")) return std::nullopt;
  std::int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto parsed = std::from_chars(name.data() + 5, end, step);
  if (parsed.ec != std::errc{} || parsed.ptr != end || step < 0) return std::nullopt;
  return step;
}

// Newest first.
std::vector<std::int64_t> steps_in(const fs::path& run) {
  std::vector<std::int64_t> steps;
  std::error_code ec;
  for (const fs::directory_entry& entry : fs::directory_iterator(checkpoints_of(run), ec)) {
    if (const auto step = step_of(entry.path())) steps.push_back(*step);
  }
  std::ranges::sort(steps, std::greater<>());
  return steps;
}

std::uint64_t checksum_of(const fs::path& path) {
  Hash64 hash;
  hash.update(MappedFile::open(path)->bytes());
  return hash.value();
}

// Of the record itself, whatever the order of its keys.
std::uint64_t record_checksum(nlohmann::json record) {
  record.erase("checksums");
  const std::string text = record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  Hash64 hash;
  hash.update(std::as_bytes(std::span(text)));
  return hash.value();
}

void check_sum(const char* name, const nlohmann::json& written, std::uint64_t found) {
  check_input(written == found, name, " is not what was written; expected another checksum");
}

// Checkpoints of earlier versions have no checksums of these two.
void check_small_files(const fs::path& folder, const nlohmann::json& record) {
  const nlohmann::json& sums = record.at("checksums");
  if (!sums.contains(kRecordName)) return;
  check_sum(kRecordName, sums[kRecordName], record_checksum(record));
  check_sum(kConfigName, sums.at(kConfigName), checksum_of(folder / kConfigName));
}

std::vector<NamedTensor> in_order(const ModelConfig& config, const ParameterValues& values,
                                  const std::string& prefix = "") {
  const std::map<std::string, TensorRef> tensors = values.tensors();
  std::vector<NamedTensor> ordered;
  for (const TensorSpec& spec : tensor_specs(config)) {
    ordered.push_back({prefix + spec.name, tensors.at(spec.name)});
  }
  return ordered;
}

// Calls body with the numbers where the host reads them.
template <class Body>
void on_host(const ParameterValues& values, const Body& body) {
  if (values.on_gpu()) return body(values.host_copy());
  body(values);
}

// A checkpoint of such weights would be no use, and takes the place of one that is.
void check_finite(const std::vector<NamedTensor>& tensors, std::int64_t step) {
  for (const auto& [name, tensor] : tensors) {
    const std::span values(reinterpret_cast<const float*>(tensor.data),
                           static_cast<std::size_t>(tensor.bytes()) / sizeof(float));
    if (std::ranges::all_of(values, [](float value) { return std::isfinite(value); })) continue;
    throw DivergedError(
        str("training diverged: after step ", step, " ", name, " holds NaN or infinity"));
  }
}

void write_weights(const fs::path& path, const Trainer& trainer) {
  on_host(trainer.weights(), [&](const ParameterValues& weights) {
    const std::vector<NamedTensor> tensors = in_order(trainer.config(), weights);
    check_finite(tensors, trainer.steps());
    write_safetensors(path, tensors, {{"format", "pt"}});
  });
}

void write_moments(const fs::path& path, const Trainer& trainer) {
  on_host(trainer.optimizer().first(), [&](const ParameterValues& first) {
    on_host(trainer.optimizer().second(), [&](const ParameterValues& second) {
      std::vector<NamedTensor> tensors = in_order(trainer.config(), first, "first.");
      const auto others = in_order(trainer.config(), second, "second.");
      tensors.insert(tensors.end(), others.begin(), others.end());
      write_safetensors(path, tensors, {});
    });
  });
}

void write_states(const fs::path& path, const LaneStates& lanes) {
  write_safetensors(path, lanes.host_copy().tensors, {});
}

// That a checkpoint has beside its record, each with a checksum there.
std::vector<const char*> tensor_files(const TrainOptions& options) {
  if (options.carry_states) return {kWeightsName, kMomentsName, kStatesName};
  return {kWeightsName, kMomentsName};
}

// A name may be any bytes, and one that is no UTF-8 is recorded as a list of them.
ordered_json names_to_json(const std::vector<std::string>& names) {
  ordered_json out = ordered_json::array();
  for (const std::string& name : names) {
    if (find_ill_formed(name) == std::string::npos) {
      out.push_back(name);
    } else {
      out.push_back(std::vector<unsigned char>(name.begin(), name.end()));
    }
  }
  return out;
}

std::vector<std::string> names_from_json(const nlohmann::json& names) {
  std::vector<std::string> out;
  for (const nlohmann::json& name : names) {
    if (!name.is_array()) {
      out.push_back(name.get<std::string>());
      continue;
    }
    const auto bytes = name.get<std::vector<unsigned char>>();
    out.emplace_back(bytes.begin(), bytes.end());
  }
  return out;
}

ordered_json to_json(const TrainRecord& record) {
  const TrainData& data = record.data;
  const Rhythm& rhythm = record.rhythm;
  ordered_json json = {{"format", kFormat},
                       {"step", record.step},
                       {"position", record.position},
                       {"training", to_json(record.options)},
                       {"data",
                        {{"files", names_to_json(data.files)},
                         {"valid", names_to_json(data.held_out)},
                         {"separator", data.format.separator},
                         {"json_key", data.format.json_key},
                         {"valid_split", data.held_out_share},
                         {"fingerprint", data.fingerprint}}},
                       {"run",
                        {{"eval_every", rhythm.eval_every},
                         {"eval_blocks", rhythm.eval_blocks},
                         {"save_every", rhythm.save_every},
                         {"keep", rhythm.keep}}},
                       {"version", record.version},
                       {"command", record.command}};
  if (record.task) json["task"] = to_json(*record.task);
  return json;
}

TrainRecord record_from(const nlohmann::json& json) {
  TrainRecord record;
  check_input(json.at("format") == kFormat, "its format is ", json.at("format").dump(),
              "; expected \"", kFormat, "\"");
  json.at("step").get_to(record.step);
  json.at("position").get_to(record.position);
  record.options = train_options_from(json.at("training"));
  const nlohmann::json& data = json.at("data");
  record.data.files = names_from_json(data.at("files"));
  record.data.held_out = names_from_json(data.at("valid"));
  data.at("separator").get_to(record.data.format.separator);
  data.at("json_key").get_to(record.data.format.json_key);
  record.data.held_out_share = data.value("valid_split", 0.0);
  data.at("fingerprint").get_to(record.data.fingerprint);
  const nlohmann::json& run = json.at("run");
  run.at("eval_every").get_to(record.rhythm.eval_every);
  run.at("eval_blocks").get_to(record.rhythm.eval_blocks);
  run.at("save_every").get_to(record.rhythm.save_every);
  run.at("keep").get_to(record.rhythm.keep);
  check_rhythm(record.rhythm);
  if (json.contains("task")) record.task = task_options_from(json.at("task"));
  json.at("version").get_to(record.version);
  json.at("command").get_to(record.command);
  return record;
}

void fill_folder(const fs::path& folder, const TrainRecord& record, const Trainer& trainer) {
  std::error_code ec;
  fs::remove_all(folder, ec);
  fs::create_directories(folder, ec);
  check_done(ec, folder);
  write_atomically(folder / kConfigName, config_to_json(trainer.config()));
  write_weights(folder / kWeightsName, trainer);
  write_moments(folder / kMomentsName, trainer);
  if (trainer.lanes() != nullptr) write_states(folder / kStatesName, *trainer.lanes());
  ordered_json json = to_json(record);
  for (const char* name : tensor_files(record.options)) {
    json["checksums"][name] = checksum_of(folder / name);
  }
  json["checksums"][kConfigName] = checksum_of(folder / kConfigName);
  json["checksums"][kRecordName] = record_checksum(json);
  // A command may hold any bytes.
  const auto replace = ordered_json::error_handler_t::replace;
  write_atomically(folder / kRecordName, json.dump(2, ' ', false, replace) + "\n");
}

// A checkpoint that was not finished, or a file.
bool is_left_over(const fs::path& path) {
  return (path.extension() == ".tmp" && step_of(path.stem())) || is_abandoned_temporary(path);
}

}  // namespace

void check_rhythm(const Rhythm& rhythm) {
  for (const auto& [what, count] : {std::pair("steps between evaluations", rhythm.eval_every),
                                    std::pair("blocks of an evaluation", rhythm.eval_blocks),
                                    std::pair("steps between checkpoints", rhythm.save_every),
                                    std::pair("checkpoints that are kept", rhythm.keep)}) {
    check_input(count >= 1, what, ": ", count, "; expected at least 1");
  }
}

fs::path write_train_checkpoint(const fs::path& run, TrainRecord record, const Trainer& trainer) {
  record.step = trainer.steps();
  record.position = trainer.position();
  record.options = trainer.options();
  fs::path folder = folder_of(run, record.step);
  fs::path aside = folder;
  aside += ".tmp";
  std::error_code ec;
  try {
    fill_folder(aside, record, trainer);
  } catch (...) {
    fs::remove_all(aside, ec);  // a full disk is not to stay full because of it
    throw;
  }
  fs::remove_all(folder, ec);  // only one that could not be read is there
  check_done(ec, folder);
  fs::rename(aside, folder, ec);
  check_done(ec, folder);
  sync_folder_of(folder);
  remove_old_checkpoints(run, std::max<std::int64_t>(record.rhythm.keep, 2));
  remove_left_over(run);
  return folder;
}

TrainCheckpoint read_train_checkpoint(const fs::path& folder) {
  TrainCheckpoint out;
  out.folder = folder;
  try {
    const auto file = MappedFile::open(folder / kRecordName);
    const nlohmann::json json = parse_json_limited(text_of(file->bytes()), file->path().string());
    out.record = record_from(json);
    for (const char* name : tensor_files(out.record.options)) {
      check_sum(name, json.at("checksums").at(name), checksum_of(folder / name));
    }
    check_small_files(folder, json);
    out.config = read_config(folder / kConfigName);
    out.weights = read_safetensors(folder / kWeightsName);
    out.moments = read_safetensors(folder / kMomentsName);
    if (out.record.options.carry_states) out.states = read_safetensors(folder / kStatesName);
    fit_mlp_to_weights(out.config, out.weights.tensors);
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::kBadInput, quote(folder.string()),
         " is no checkpoint of a training: ", error.what(), "; expected what train writes");
  } catch (const Error& error) {
    fail(error.code(), quote(folder.string()), " cannot be continued from: ", error.what());
  }
  return out;
}

TrainCheckpoint newest_train_checkpoint(const fs::path& run, const Context& ctx) {
  for (const std::int64_t step : steps_in(run)) {
    try {
      return read_train_checkpoint(folder_of(run, step));
    } catch (const Error& error) {
      ctx.log(LogLevel::kWarning, str(error.what(), "; trying the one before"));
    }
  }
  fail(
      ErrorCode::kBadInput, quote(run.string()),
      " holds no checkpoint that a training can be continued from; expected checkpoints/step-N, as "
      "train writes them; name another folder, or begin anew");
}

TrainRecord parse_train_record(std::string_view text, const std::string& origin) {
  try {
    return record_from(parse_json_limited(text, origin));
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorCode::kBadInput, origin, " is no record of a training: ", error.what(),
         "; expected what train writes");
  }
}

std::optional<TrainRecord> newest_train_record(const fs::path& run) {
  for (const std::int64_t step : steps_in(run)) {
    try {
      const auto file = MappedFile::open(folder_of(run, step) / kRecordName);
      return parse_train_record(text_of(file->bytes()), file->path().string());
    } catch (const Error&) {
    }
  }
  return std::nullopt;
}

void remove_left_over(const fs::path& run) {
  std::error_code ignored;
  for (const fs::path& folder : {run, checkpoints_of(run)}) {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
      if (is_left_over(entry.path())) fs::remove_all(entry.path(), ignored);
    }
  }
}

void set_aside_later(const fs::path& run, std::int64_t step) {
  for (const std::int64_t later : steps_in(run)) {
    if (later <= step) return;
    const fs::path folder = folder_of(run, later);
    fs::path damaged = folder;
    damaged += ".damaged";
    std::error_code ec;
    fs::remove_all(damaged, ec);
    fs::rename(folder, damaged, ec);
    check_done(ec, damaged);
  }
}

void remove_old_checkpoints(const fs::path& run, std::int64_t keep) {
  std::error_code ignored;
  const std::vector<std::int64_t> steps = steps_in(run);
  for (std::size_t i = static_cast<std::size_t>(keep); i < steps.size(); ++i) {
    fs::remove_all(folder_of(run, steps[i]), ignored);
  }
}

bool has_train_checkpoints(const fs::path& run) {
  return !steps_in(run).empty();
}

fs::path train_checkpoint_at(const fs::path& run, std::int64_t step) {
  const fs::path folder = folder_of(run, step);
  return is_there(folder) ? folder : fs::path();
}

void restore(const TrainCheckpoint& checkpoint, Trainer& trainer) {
  trainer.assign(checkpoint.weights.tensors);
  trainer.resume(checkpoint.record.step, checkpoint.record.position, checkpoint.moments.tensors,
                 checkpoint.states.tensors);
}

void write_model(const fs::path& run, const fs::path& checkpoint) {
  for (const char* name : {kWeightsName, kConfigName}) {
    write_atomically(run / name, text_of(MappedFile::open(checkpoint / name)->bytes()));
  }
}

void write_model(const fs::path& run, const Trainer& trainer) {
  write_weights(run / kWeightsName, trainer);
  write_atomically(run / kConfigName, config_to_json(trainer.config()));
}

}  // namespace mamba3
