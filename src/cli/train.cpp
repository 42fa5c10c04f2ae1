// train: a model from scratch, from another one, or from where a training was left.
#include "cli/train.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "cli/commands.h"
#include "cli/run_options.h"
#include "cli/terminal.h"
#include "core/check.h"
#include "core/gpu.h"
#include "core/host_memory.h"
#include "core/quote.h"
#include "core/rounded.h"
#include "io/atomic_file.h"
#include "io/bytes.h"
#include "io/mapped_file.h"
#include "model/init.h"
#include "model/mixer.h"
#include "train/run_report.h"
#include "train/trainer.h"
#include "train/training_flops.h"
#include "train/training_memory.h"
#include "train/training_run.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

void check_memory(const TrainStart& start, const BatchSource* data, const Context& ctx) {
  const std::int64_t available =
      ctx.gpu() ? ctx.gpu()->info().free_bytes : available_memory_bytes();
  check_training_memory(start.config, start.record.options, available, ctx, data);
}

// Refuses what the device has no kernels or no room for, before anything is written.
void check_device(const TrainStart& start, const Context& ctx) {
  check_layers(start.config, ctx);
  check_memory(start, nullptr, ctx);
}

// Those of a step and of the one that is read ahead wait on the host: ids and targets, in vectors
// that may be half full.
void check_windows(const TrainOptions& options) {
  constexpr std::int64_t kTokenBytes = 2 * 2 * 2 * sizeof(std::int32_t);
  const std::int64_t most = available_memory_bytes() / kTokenBytes / options.length;
  if (options.batch <= most) return;
  fail(ErrorCode::kUnavailable, "a step of ", options.batch, " windows of ", options.length,
       " tokens does not fit into memory; expected at most what this process may use; --batch ",
       std::max<std::int64_t>(1, most), " fits: choose that or less");
}

std::shared_ptr<const Tokenizer> fitting_tokenizer(const TrainStart& start) {
  auto tokenizer = Tokenizer::load(start.tokenizer);
  check_input(tokenizer->vocab() == start.config.vocab, quote(start.tokenizer.string()), " has ",
              tokenizer->vocab(), " tokens and the model a vocabulary of ", start.config.vocab,
              "; expected as many; name the model's own tokenizer, or correct vocab_size");
  return tokenizer;
}

void copy_tokenizer(const TrainStart& start) {
  std::error_code ec;
  const bool json = start.tokenizer.extension() == ".json";
  const fs::path to = start.folder / (json ? "tokenizer.json" : "tokenizer.model");
  if (fs::equivalent(start.tokenizer, to, ec)) return;
  write_atomically(to, text_of(MappedFile::open(start.tokenizer)->bytes()));
}

void prepare_folder(TrainStart& start) {
  std::error_code ec;
  fs::create_directories(start.folder, ec);
  check_input(!ec, "cannot make the folder ", quote(start.folder.string()), ": ", ec.message(),
              "; expected a place that can be written; choose another -o");
  if (!start.lock) {
    start.lock.emplace(start.folder);
    check_free(start.folder);  // another one may have come and gone meanwhile
  }
  remove_left_over(start.folder);
}

// Once nothing more can be refused: what an earlier call has left is still there until then.
void fill_folder(const TrainStart& start) {
  if (start.record.task) {
    write_task_tokenizer(start.record.task->task, start.folder);
  } else {
    copy_tokenizer(start);
  }
  if (start.checkpoint) set_aside_later(start.folder, start.checkpoint->record.step);
}

Sequences open_task(const TrainStart& start, Context& ctx) {
  const TrainOptions& options = start.record.options;
  const TaskOptions& task = *start.record.task;
  ctx.log(LogLevel::kInfo, str(start.config.parameters(), " parameters, rope ",
                               rope_name(start.config.mixer.rope), ", ", task_name(task.task), ", ",
                               options.batch, " sequences a step, seed ", options.seed));
  return {training_sequences(task, options.batch, options.seed), evaluation_sequences(task)};
}

// Lets go of the files that they come from.
void set_weights(TrainStart& start, Trainer& trainer, Context& ctx) {
  if (start.checkpoint) {
    restore(*start.checkpoint, trainer);
  } else if (start.first_weights) {
    trainer.assign(start.first_weights->tensors);
  } else {
    const std::uint64_t seed = start.record.options.seed;
    trainer.assign(init_tensors(start.config, DType::kF32, seed, ctx).tensors);
  }
  start.checkpoint.reset();
  start.first_weights.reset();
}

// What the user sees of a run: a line on a terminal, messages at evaluations and checkpoints.
class Display {
 public:
  Display(const TrainCommand& command, const std::optional<TaskOptions>& task,
          const Trainer& trainer, const Context& ctx)
      : ctx_(ctx),
        task_(task),
        first_(trainer.steps()),
        all_(trainer.options().schedule.steps),
        flops_(training_flops_per_token(trainer.config())),
        bar_(command.common, "training", "steps") {}

  RunHooks hooks() {
    RunHooks hooks;
    hooks.poll = check_interrupt;
    hooks.wait = [] { wait_seconds(10, check_interrupt); };
    hooks.on_step = [this](const StepReport& report, double tokens_per_s) {
      loss_ = report.loss;
      bar_.update(report.step - first_, all_ - first_,
                  str("step ", report.step, "  loss ", rounded(report.loss, 3), "  ",
                      rounded(tokens_per_s, 0), " tokens/s  ",
                      rounded(1e-12 * flops_ * tokens_per_s, 2), " TFLOP/s"));
    };
    hooks.on_evaluation = [this](std::int64_t step, const Evaluation& found) {
      say(str(at(step), "held out ", rounded(found.loss, 4),
              task_
                  ? ", scaled accuracy " + rounded(scaled_accuracy(task_->task, found.accuracy), 2)
                  : ""));
    };
    hooks.on_save = [this](std::int64_t step, const fs::path& folder) {
      say(str(at(step), "saved ", folder.string()));
    };
    return hooks;
  }

 private:
  // Where no step was made there is no loss.
  std::string at(std::int64_t step) const {
    return str("step ", step, ": ", std::isnan(loss_) ? "" : "loss " + rounded(loss_, 4) + ", ");
  }
  void say(const std::string& text) {
    bar_.clear();
    ctx_.log(LogLevel::kInfo, text);
  }

  const Context& ctx_;
  std::optional<TaskOptions> task_;
  std::int64_t first_, all_;
  double flops_;  // of a token
  double loss_ = NAN;
  ProgressBar bar_;
};

void report_result(const TrainCommand& command, const TrainStart& start, const RunResult& result) {
  if (!command.common.json) return;
  const bool any = result.last.step > 0;
  Json report{
      {"output", start.folder.string()},
      {"parameters", start.config.parameters()},
      {"steps", result.steps},
      {"loss", any ? Json(result.last.loss) : Json()},
      {"held_out", result.held_out ? Json(result.held_out->loss) : Json()},
      {"tokens", result.tokens},
      {"tokens_per_s", any ? Json(static_cast<double>(result.tokens) / result.step_s) : Json()},
      {"tflops_per_s", any ? Json(1e-12 * training_flops_per_token(start.config) *
                                  static_cast<double>(result.tokens) / result.step_s)
                           : Json()},
      {"seed", start.record.options.seed}};
  if (start.record.task) {
    const Task task = start.record.task->task;
    report["task"] = task_name(task);
    report["accuracy"] = scaled_accuracy(task, result.held_out->accuracy);
  }
  write_json(report);
}

int run_train(CLI::App& app, TrainCommand& command) {
  if (!command.report.empty()) {
    write_report(command.report);
    return 0;
  }
  if (!command.run.empty()) apply_run_file(app, command.run);
  check_command(command);
  if (command.sweep.asked()) return run_sweep(app, command);
  Context ctx = make_context(command.common, choose_device(command.common));
  TrainStart start = find_start(command, ctx);
  std::optional<Display> display;
  const auto hooks = [&](const Trainer& trainer) {
    write_run_file(app, command, start);
    return display.emplace(command, start.record.task, trainer, ctx).hooks();
  };
  report_result(command, start, run_training(command, start, hooks, ctx));
  return 0;
}

void add_data_options(CLI::App& app, TrainCommand& command) {
  app.add_option("--data", command.data,
                 "texts or JSON lines to train on, also packed by xz; several are read in turn")
      ->type_name("FILE");
  app.add_option("--valid", command.held_out, "held-out texts, for evaluations")->type_name("FILE");
  app.add_option("--valid-split", command.valid_split,
                 "instead of --valid: a fraction of the documents of --data (below 1), or so many "
                 "of them, are held out and not trained on")
      ->type_name("X")
      ->check(number(0, 1e12));
  app.add_option("--separator", command.separator,
                 "a line equal to LINE stands between two documents of a text (default: "
                 "<|endoftext|>; empty: a file is one document)")
      ->type_name("LINE");
  app.add_option("--json-key", command.json_key, "the text's key in JSON lines (default: text)")
      ->type_name("KEY");
  app.add_option("--cache", command.cache, "folder for encoded texts (default: that of -o)")
      ->type_name("DIR");
}

void add_start_options(CLI::App& app, TrainCommand& command) {
  app.add_option("--run", command.run,
                 "options by their long names, in YAML or JSON; those of the command line win")
      ->type_name("FILE");
  std::string names;
  for (const std::string& name : preset_names()) names += (names.empty() ? "" : ", ") + name;
  app.add_option(
         "--preset", command.preset,
         "a new model of one of the authors' sizes, with the tokenizer's vocabulary: " + names)
      ->type_name("NAME");
  app.add_option("--config", command.config, "a new model of the sizes in a config.json")
      ->type_name("FILE");
  app.add_option("--init-from", command.init_from, "begin with the weights of another model")
      ->type_name("DIR");
  app.add_option("--resume", command.resume,
                 "go on with the training that DIR holds, bit for bit; options that are not given "
                 "are as they were")
      ->type_name("DIR");
  app.add_option("-o,--output", command.output, "folder to write (default with --resume: the same)")
      ->type_name("DIR");
}

void whole(CLI::App& app, const char* name, std::optional<std::int64_t>& to, std::int64_t least,
           const char* help) {
  app.add_option(name, to, help)->type_name("N")->check(whole_number(least, 1'000'000'000));
}

void real(CLI::App& app, const char* name, std::optional<double>& to, double most,
          const char* help) {
  app.add_option(name, to, help)->type_name("X")->check(number(0, most));
}

constexpr double kMostBeta = 0.999999;

void positive(CLI::App& app, const char* name, std::optional<double>& to, double most,
              const char* help) {
  app.add_option(name, to, help)->type_name("X")->check(number_above_zero(most));
}

void add_step_options(CLI::App& app, TrainCommand& command) {
  whole(app, "--steps", command.steps, 1, "steps of the whole training (default: 1000)");
  whole(app, "--batch", command.batch, 1, "windows of a step (default: 128)");
  whole(app, "--length", command.length, 1, "tokens of a window (default: 512)");
  whole(app, "--accumulate", command.accumulate, 1,
        "a step is taken in micro-batches of at most N tokens, which decides the memory it needs "
        "(default: 4096; on a GPU as many as keep at most 12 GB, up to 65536)");
  app.add_option("--recompute", command.recompute,
                 "what the way back computes again instead of keeping it: none, scan or block; "
                 "takes time, saves memory, changes no bit (default: none)")
      ->type_name("NAME")
      ->check(one_of({"none", "scan", "block"}));
  app.add_flag("--carry-states", command.carry_states,
               "window i of a step begins with the states that window i of the step before has "
               "ended with, and goes on in the text there; documents begin with fresh ones");
  positive(app, "--rate", command.rate, 1e3, "peak of the learning rate (default: 0.003)");
  whole(app, "--warmup", command.warmup, 0,
        "steps up to the peak (default: 200, but at most a fifth of the steps)");
  app.add_option("--schedule", command.schedule,
                 "wsd (constant, then falling), cosine, linear or constant (default: wsd)")
      ->type_name("NAME")
      ->check(one_of(schedule_names()));
  real(app, "--decay-from", command.decay_from, 1,
       "wsd: the fall begins at this fraction of the steps (default: 0.6)");
  real(app, "--final-rate", command.final_rate, 1,
       "what the rate falls to, as a fraction of its peak (default: 0)");
  real(app, "--decay", command.decay, 1e3, "weight decay of matrices (default: 0.1)");
  real(app, "--clip", command.clip, 1e9, "largest norm of the gradients; 0: any (default: 1)");
  real(app, "--beta1", command.beta1, kMostBeta, "of AdamW (default: 0.9)");
  real(app, "--beta2", command.beta2, kMostBeta, "of AdamW (default: 0.95)");
  positive(app, "--eps", command.eps, 1, "of AdamW (default: 1e-8)");
  real(app, "--z-loss", command.z_loss, 1e3,
       "weight of the squared logarithm of the softmax's sum (default: 0)");
}

void add_rhythm_options(CLI::App& app, TrainCommand& command) {
  whole(app, "--eval-every", command.eval_every, 1, "steps between evaluations (default: 500)");
  whole(app, "--eval-blocks", command.eval_blocks, 1,
        "windows of the held-out texts that count, from the first on (default: 512)");
  whole(app, "--save-every", command.save_every, 1, "steps between checkpoints (default: 500)");
  whole(app, "--keep", command.keep, 1, "checkpoints that are kept (default: 2)");
  app.add_option("--report", command.report,
                 "trains nothing: draws DIR/report.html again, as every evaluation does")
      ->type_name("DIR");
}

}  // namespace

RunResult run_training(const TrainCommand& command, TrainStart& start, const MakeHooks& hooks,
                       Context& ctx) {
  check_device(start, ctx);
  check_windows(start.record.options);
  const auto tokenizer = start.record.task ? nullptr : fitting_tokenizer(start);
  prepare_folder(start);
  const Sequences sequences =
      start.record.task ? open_task(start, ctx) : open_texts(command, start, *tokenizer, ctx);
  const TrainOptions& options = start.record.options;
  check_memory(start, sequences.training.get(), ctx);
  ctx.log(LogLevel::kInfo,
          describe(training_memory_needed(start.config, options, ctx, sequences.training.get())));
  fill_folder(start);
  Trainer trainer(start.config, options, sequences.training, ctx);
  set_weights(start, trainer, ctx);
  return TrainingRun(start.folder, start.record, trainer, sequences.held_out, hooks(trainer), ctx)
      .run();
}

Run add_train(CLI::App& app) {
  auto command = std::make_shared<TrainCommand>();
  add_data_options(app, *command);
  add_start_options(app, *command);
  add_step_options(app, *command);
  add_rhythm_options(app, *command);
  add_task_options(app, command->task);
  add_sweep_options(app, command->sweep);
  add_common_options(app, command->common);
  return [command, &app] { return run_train(app, *command); };
}

}  // namespace mamba3::cli
