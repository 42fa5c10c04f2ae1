#include "cli/train_sweep.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <fstream>
#include <mutex>
#include <thread>
#include <vector>

#include "cli/options.h"
#include "cli/run_options.h"
#include "cli/sweep_cells.h"
#include "cli/sweep_report.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "core/quote.h"
#include "io/atomic_file.h"
#include "io/bytes.h"
#include "io/config_file.h"
#include "io/mapped_file.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

constexpr int kJobsOnGpu = 8;  // small models: one alone leaves most of a card idle

class Sweep {
 public:
  Sweep(const CLI::App& app, const TrainCommand& command)
      : app_(app),
        command_(command),
        device_(choose_device(command.common)),
        record_(record_of(command)),
        folder_(command.resume.empty() ? command.output : command.resume),
        cells_(sweep_cells(command)),
        results_(cells_.size()),
        bar_(command.common, "training", "steps") {}

  // A result for each cell, in their order; null where it was interrupted.
  const std::vector<Json>& run() {
    prepare();
    for (std::size_t i = 0; i < cells_.size(); ++i) read_result(i);
    try {
      train_all();
    } catch (...) {
      write_results();
      throw;
    }
    write_results();
    return results_;
  }

 private:
  TrainRecord record_of(const TrainCommand& command) const {
    return with_given(command,
                      task_record(command.task, usual_compute(device_.kind == DeviceKind::kCuda)));
  }
  Task task() const { return record_.task->task; }
  fs::path result_path(std::size_t i) const { return cells_[i].folder(folder_) / "result.json"; }

  void prepare() {
    std::error_code ec;
    const bool there = fs::exists(folder_, ec) && !fs::is_empty(folder_, ec);
    const bool begins = command_.resume.empty();
    check_input(begins != there, quote(folder_.string()),
                begins ? " is not empty; expected a new folder; continue a sweep with --resume, or "
                         "choose another -o"
                       : " holds no sweep; expected one to continue; begin it with -o");
    fs::create_directories(folder_, ec);
    check_input(!ec, "cannot make the folder ", quote(folder_.string()), ": ", ec.message(),
                "; expected a place that can be written; choose another -o");
    lock_.emplace(folder_);
    remove_left_over(folder_);
  }

  // Of a training that an earlier call has ended, and this one shall not make longer. A damaged one
  // stays until there is another.
  void read_result(std::size_t i) {
    const fs::path path = result_path(i);
    if (!is_there(path)) return;
    Json found;
    try {
      found = parse_sweep_result(text_of(MappedFile::open(path)->bytes()), quote(path.string()));
    } catch (const Error& error) {
      say(str("warning: ", error.what(), "; this training is run again"));
      return;
    }
    const nlohmann::json own = identity(i), others = found;
    for (const auto& [key, value] : own.items()) {
      if (!others.contains(key)) continue;  // of an earlier version
      check_input(others[key] == value, quote(path.string()), " is of another training: its ", key,
                  " is ", others[key].dump(), "; expected ", value.dump(),
                  "; give the options of the sweep's beginning, or choose another folder");
    }
    const bool short_of = found["steps"].get<std::int64_t>() < record_.options.schedule.steps;
    if (short_of && !found.contains("diverged")) return;
    results_[i] = std::move(found);
  }

  // What a training's result hangs on, but for the number of its steps. The order of keys does not
  // matter.
  nlohmann::json identity(std::size_t i) const {
    return {{"training", to_json(*record_.task)},
            {"batch", record_.options.batch},
            {"model", model_of(i)},
            {"options", options_of(i)}};
  }
  nlohmann::json options_of(std::size_t i) const {
    const TrainCommand command = cell_command(command_, folder_, cells_[i]);
    const TrainRecord record = record_of(command);
    nlohmann::json options = to_json(record.options);
    for (const char* key : {"steps", "accumulate", "recompute"}) options.erase(key);
    options["eval_blocks"] = record.rhythm.eval_blocks;
    return options;
  }
  nlohmann::json model_of(std::size_t i) const {
    const TrainCommand command = cell_command(command_, folder_, cells_[i]);
    ModelConfig config = task_model(command.task, command.config);
    const auto activation = load_options(command.common).a_activation;
    if (activation) config.mixer.a_activation = *activation;
    return nlohmann::json::parse(config_to_json(config));
  }

  void say(const std::string& text) {
    if (!command_.common.quiet) message("mamba3: " + text);
  }

  int jobs() const {
    const int most = static_cast<int>(cells_.size());
    if (command_.sweep.jobs > 0) return std::min(most, command_.sweep.jobs);
    if (device_.kind == DeviceKind::kCuda) return std::min(most, kJobsOnGpu);
    const int there = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    return std::min(most, command_.common.threads > 0 ? command_.common.threads : there);
  }

  void train_all() {
    std::atomic<std::size_t> next{0};
    {
      std::vector<std::jthread> workers;
      workers.reserve(static_cast<std::size_t>(jobs()));
      for (int job = 0; job < jobs(); ++job) {
        workers.emplace_back([&] {
          for (std::size_t i = next++; i < cells_.size() && !stop_; i = next++) {
            if (results_[i].is_null()) try_cell(i);
          }
        });
      }
    }
    bar_.clear();
    if (failure_) std::rethrow_exception(failure_);
  }

  void try_cell(std::size_t i) {
    try {
      keep(i, train(i));
    } catch (const Error& error) {
      fail_with(std::current_exception(), error.code() == ErrorCode::kInterrupted);
    } catch (...) {
      fail_with(std::current_exception(), false);
    }
  }

  // The first failure ends the sweep; that a training was interrupted says less than any other.
  void fail_with(const std::exception_ptr& failure, bool interrupted) {
    const std::scoped_lock lock(mutex_);
    if (!failure_ || (interrupted_ && !interrupted)) {
      failure_ = failure;
      interrupted_ = interrupted;
    }
    stop_ = true;
  }

  // A training that diverges has a result too; anything else ends the sweep.
  Json train(std::size_t i) {
    const TrainCommand command = cell_command(command_, folder_, cells_[i]);
    Context ctx = make_context(command.common, device_, [&](LogLevel level, const auto& text) {
      if (level == LogLevel::kWarning) warn(i, text);
    });
    TrainStart start = find_start(command, ctx);
    Json result = describe(i, start);
    const auto hooks = [&](const Trainer& trainer) {
      write_run_file(app_, command, start);
      return hooks_of(trainer);
    };
    try {
      const RunResult ended = run_training(command, start, hooks, ctx);
      result["accuracy"] = scaled_accuracy(task(), ended.held_out->accuracy);
      result["held_out"] = ended.held_out->loss;
      result["seconds"] = ended.step_s;
    } catch (const DivergedError& error) {
      result["accuracy"] = 0.0;
      result["diverged"] = error.what();
    }
    return result;
  }

  // Of one of the trainings, whose other messages would be too many.
  void warn(std::size_t i, const std::string& text) {
    const std::scoped_lock lock(mutex_);
    bar_.clear();
    say(str("warning: ", cells_[i].name(), ": ", text));
  }

  Json describe(std::size_t i, const TrainStart& start) const {
    const SweepCell& cell = cells_[i];
    const bool bf16 = start.record.options.compute == Compute::kBf16;
    return {{"name", str("state-tracking/", task_name(task()), bf16 ? "/bf16/" : "/", cell.name())},
            {"rope", cell.rope},
            {"width", cell.width},
            {"rate", cell.rate},
            {"seed", cell.seed},
            {"layers", start.config.layers},
            {"state", start.config.mixer.state},
            {"parameters", start.config.parameters()},
            {"steps", start.record.options.schedule.steps},
            {"batch", start.record.options.batch},
            {"training", to_json(*start.record.task)},
            {"model", model_of(i)},
            {"options", options_of(i)}};
  }

  RunHooks hooks_of(const Trainer& trainer) {
    {
      const std::scoped_lock lock(mutex_);
      earlier_ += trainer.steps();
    }
    RunHooks hooks;
    hooks.poll = [this] {
      check_interrupt();
      if (stop_) fail(ErrorCode::kInterrupted, "another training of the sweep has failed");
    };
    hooks.wait = [poll = hooks.poll] { wait_seconds(10, poll); };
    hooks.on_step = [this](const StepReport&, double) {
      const std::scoped_lock lock(mutex_);
      if (interrupted()) return;
      const auto all = record_.options.schedule.steps * std::ssize(cells_);
      bar_.update(++steps_, all - earlier_, str(ended_, " of ", cells_.size(), " trainings"));
    };
    return hooks;
  }

  void keep(std::size_t i, Json result) {
    write_atomically(result_path(i), result.dump(1) + "\n");
    const std::scoped_lock lock(mutex_);
    ++ended_;
    bar_.clear();
    say(str(cells_[i].name(), ": ",
            result.contains("diverged") ? "diverged" : "scaled accuracy " + accuracy_text(result)));
    results_[i] = std::move(result);
  }

  // With those of an earlier call of more trainings.
  void write_results() const {
    std::string lines;
    std::ifstream before(folder_ / "results.jsonl");
    for (std::string line; std::getline(before, line);) {
      const auto other = nlohmann::json::parse(line, nullptr, false);
      const bool named = other.is_object() && other.contains("name") && other["name"].is_string();
      if (named && !is_ours(other["name"].get<std::string>())) lines += line + "\n";
    }
    for (const Json& result : results_) {
      if (!result.is_null()) lines += result.dump() + "\n";
    }
    write_atomically(folder_ / "results.jsonl", lines);
  }

  bool is_ours(const std::string& name) const {
    return std::ranges::any_of(results_, [&](const Json& result) {
      return !result.is_null() && result["name"].get<std::string>() == name;
    });
  }

  const CLI::App& app_;
  TrainCommand command_;
  Device device_;
  TrainRecord record_;  // what all of them have in common
  fs::path folder_;
  std::optional<FolderLock> lock_;
  std::vector<SweepCell> cells_;
  std::vector<Json> results_;
  std::mutex mutex_;  // of what follows
  ProgressBar bar_;
  std::int64_t steps_ = 0, earlier_ = 0;  // made now; made by an earlier call
  std::int64_t ended_ = 0;
  std::exception_ptr failure_;
  bool interrupted_ = false;  // it is no more than that
  std::atomic<bool> stop_{false};
};

}  // namespace

void add_sweep_options(CLI::App& app, SweepCommand& command) {
  const char* group = "Sweeps of a task: a training for each combination, in folders of their own";
  const auto list = [&](const char* name, std::string& to, const char* help) {
    app.add_option(name, to, help)->type_name("X,X,..")->group(group);
  };
  list("--rates", command.rates, "peaks of the learning rate");
  list("--seeds", command.seeds, "seeds of weights and sequences");
  list("--widths", command.widths, "widths of the model");
  list("--ropes", command.ropes, "data-dependent, standard, none");
  app.add_option("--jobs", command.jobs,
                 "trainings at once (default: one for each processor; 8 on a GPU)")
      ->type_name("N")
      ->check(whole_number(1, 1024))
      ->group(group);
  app.add_option("--out", command.out, "write results as bench does")
      ->type_name("FILE")
      ->group(group);
}

int run_sweep(const CLI::App& app, const TrainCommand& command) {
  check_place("--out", command.sweep.out);
  const std::vector<Json> results = Sweep(app, command).run();
  if (!command.sweep.out.empty()) {
    const Context ctx = make_context(command.common, choose_device(command.common));
    write_atomically(command.sweep.out, sweep_document(results, ctx).dump(1) + "\n");
  }
  if (!command.common.json) write_out(sweep_table(results));
  for (const Json& result : results) {
    if (command.common.json) write_json(result);
  }
  return 0;
}

}  // namespace mamba3::cli
