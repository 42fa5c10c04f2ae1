#include "cli/run_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>

#include "core/check.h"
#include "core/nearest.h"
#include "core/quote.h"
#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "io/run_file.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

constexpr const char* kRunFileName = "run.yaml";

using Values = std::vector<std::string>;

std::string as_option_name(std::string key) {
  std::ranges::replace(key, '_', '-');
  return key;
}

std::string name_of(const CLI::Option& option) {
  return option.get_lnames().empty() ? "" : option.get_lnames().front();
}

bool is_flag(const CLI::Option& option) {
  return option.get_items_expected_max() == 0;
}

bool takes_list(const CLI::Option& option) {
  return option.get_items_expected_max() > 1;
}

bool names_path(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  return type == "FILE" || type == "DIR" || type == "PATH";
}

bool one_of_names(const std::string& name, std::initializer_list<const char*> names) {
  return std::ranges::find(names, name) != names.end();
}

// What a file of options does not hold: questions, itself, and how a call reports.
bool may_be_in_file(const std::string& name) {
  return !name.empty() &&
         !one_of_names(name, {"help", "version", "run", "report", "json", "quiet", "verbose"});
}

// Options of which one is given: of those in the file, none counts beside one of the command line.
bool alternative_given(const CLI::App& app, const std::string& name) {
  for (const auto& group :
       {std::initializer_list<const char*>{"preset", "config", "init-from", "resume"},
        std::initializer_list<const char*>{"valid", "valid-split"}}) {
    if (!one_of_names(name, group)) continue;
    for (const char* other : group) {
      const CLI::Option* option = app.get_option_no_throw(std::string("--") + other);
      if (option != nullptr && option->count() > 0) return true;
    }
  }
  return false;
}

std::vector<std::string> known_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    if (!may_be_in_file(name_of(*option))) continue;
    const std::vector<std::string>& all = option->get_lnames();
    names.insert(names.end(), all.begin(), all.end());
  }
  return names;
}

// Options of `app` that nobody has given, and what the file gives them.
using Given = std::vector<std::pair<CLI::Option*, const RunFileEntry*>>;

Given find_options(CLI::App& app, const std::vector<RunFileEntry>& entries,
                   const std::string& origin) {
  const std::vector<std::string> known = known_names(app);
  Given given;
  for (const RunFileEntry& entry : entries) {
    const std::string name = as_option_name(entry.key);
    if (std::ranges::find(known, name) == known.end()) {
      const std::string nearest = nearest_name(name, known);
      fail(ErrorCode::kBadInput, origin, ", line ", entry.line, ": there is no option ",
           quote(entry.key), "; expected one that the help lists",
           nearest.empty() ? "" : "; perhaps " + nearest);
    }
    CLI::Option* option = app.get_option("--" + name);
    if (option->count() == 0 && !alternative_given(app, name)) given.emplace_back(option, &entry);
  }
  return given;
}

void give(CLI::Option& option, const RunFileEntry& entry, const std::string& origin) {
  const auto check = [&](bool ok, const char* found, const char* expected) {
    check_input(ok, origin, ", line ", entry.line, ": ", quote(entry.key), " has ", found,
                "; expected ", expected, "; correct the file");
  };
  check(option.count() == 0, "been given above by its other spelling", "an option once");
  check(!entry.values.empty(), "an empty list", "a value; leave out what is not given");
  check(takes_list(option) || !entry.list, "a list of values", "a single one");
  Values values = entry.values;
  if (is_flag(option)) {
    std::string& value = values.front();
    check(value == "true" || value == "false", "no truth value", "true or false");
    value = option.get_flag_value(as_option_name(entry.key), value);
  }
  try {
    option.add_result(values);
    option.run_callback();
  } catch (const CLI::ParseError& error) {
    const std::string found = error.what();
    fail(ErrorCode::kBadInput, origin, ", line ", entry.line, ": ", found,
         found.find("; expected") == std::string::npos
             ? "; expected a value as the help describes it"
             : "",
         "; correct the file");
  }
}

Values absolute(const Values& paths) {
  Values out;
  for (const std::string& path : paths) out.push_back(fs::absolute(path).string());
  return out;
}

// Values by names of options.
using Options = std::map<std::string, Values>;

template <class T>
void put(Options& to, const char* name, const T& value) {
  to[name] = {Json(value).dump()};
}

void put_texts(Options& to, const TrainData& data) {
  if (!data.files.empty()) to["data"] = data.files;
  if (!data.held_out.empty()) to["valid"] = data.held_out;
  if (data.held_out_share > 0) put(to, "valid-split", data.held_out_share);
  to["separator"] = {data.format.separator};
  to["json-key"] = {data.format.json_key};
}

void put_task(Options& to, const TaskOptions& task) {
  to["task"] = {task_name(task.task)};
  std::string stages;
  for (const std::int64_t longest : task.stages) stages += str(stages.empty() ? "" : ",", longest);
  to["stages"] = {stages};
  put(to, "stage-steps", task.stage_steps);
  put(to, "min-length", task.min_length);
  put(to, "eval-length", task.eval_length);
  put(to, "multiplication", task.multiplication);
}

Options recorded(const TrainStart& start) {
  const TrainRecord& record = start.record;
  Options out;
  const Json options = to_json(record.options);
  for (const auto& [key, value] : options.items()) {
    out[as_option_name(key)] = {value.is_string() ? value.get<std::string>() : value.dump()};
  }
  put(out, "eval-every", record.rhythm.eval_every);
  put(out, "eval-blocks", record.rhythm.eval_blocks);
  put(out, "save-every", record.rhythm.save_every);
  put(out, "keep", record.rhythm.keep);
  if (record.task) {
    put_task(out, *record.task);
  } else {
    put_texts(out, record.data);
  }
  out["output"] = {fs::absolute(start.folder).string()};
  return out;
}

Options given(const CLI::App& app) {
  Options out;
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0) continue;
    out[name_of(*option)] = names_path(*option) ? absolute(option->results()) : option->results();
  }
  return out;
}

// A training that was made without the file, or whose file cannot be read, has none.
Options before(const fs::path& folder) {
  Options out;
  try {
    for (const RunFileEntry& entry : read_run_file(folder / kRunFileName)) {
      out[as_option_name(entry.key)] = entry.values;
    }
  } catch (const Error&) {
    out["config"] = {fs::absolute(folder / "config.json").string()};
    out["tokenizer"] = {fs::absolute(folder / "tokenizer.json").string()};
  }
  return out;
}

}  // namespace

void apply_run_file(CLI::App& app, const fs::path& path) {
  const std::vector<RunFileEntry> entries = read_run_file(path);
  for (const auto& [option, entry] : find_options(app, entries, path.string())) {
    give(*option, *entry, path.string());
  }
}

void write_run_file(const CLI::App& app, const TrainCommand& command, const TrainStart& start) {
  Options values = recorded(start);
  values.merge(given(app));
  if (!command.resume.empty()) values.merge(before(command.resume));
  values.erase("resume");   // the file is for a training of its own
  if (start.record.task) {  // which decides these
    for (const char* name : {"steps", "length", "tokenizer"}) values.erase(name);
    // One of a sweep has no lists, but one value of each.
    for (const char* name : {"rates", "seeds", "widths", "ropes", "jobs", "out"})
      values.erase(name);
    if (!command.task.rope.empty()) values["rope"] = {command.task.rope};
    if (command.task.width) put(values, "width", *command.task.width);
  }
  std::vector<RunFileEntry> entries;
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = name_of(*option);
    const auto found = values.find(name);
    if (found == values.end() || !may_be_in_file(name)) continue;
    entries.push_back({name, found->second, takes_list(*option)});
  }
  write_atomically(
      start.folder / kRunFileName,
      run_file_text(entries,
                    {"mamba3 " + start.record.version + ": " + start.record.command,
                     "Again: mamba3 train --run " + std::string(kRunFileName) + " -o NEW-FOLDER"}));
}

}  // namespace mamba3::cli
