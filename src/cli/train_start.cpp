// train: from options to where a training begins.
#include <algorithm>
#include <random>

#include "cli/bench_origin.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "cli/train.h"
#include "core/check.h"
#include "core/quote.h"
#include "engine/checkpoint_files.h"
#include "io/config_file.h"
#include "mamba3/version.h"
#include "model/weights.h"
#include "train/token_selection.h"
#include "train/training_memory.h"

namespace mamba3::cli {
namespace fs = std::filesystem;
namespace {

std::vector<std::string> absolute(const std::vector<std::string>& files) {
  std::vector<std::string> out;
  out.reserve(files.size());
  for (const std::string& file : files) out.push_back(fs::absolute(file).string());
  return out;
}

fs::path tokenizer_in(const fs::path& folder) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (is_there(folder / name)) return folder / name;
  }
  fail(ErrorCode::kBadInput, quote(folder.string()),
       " has no tokenizer.json or tokenizer.model; expected one of them; name the file with "
       "--tokenizer");
}

void record_activation(ModelConfig& config, const TrainCommand& command, Context& ctx) {
  choose_a_activation(config, load_options(command.common).a_activation, ctx);
  config.mixer.a_activation_recorded = true;
}

// What is missing is best said at once, and from a NaN nothing is learned.
void check_weights(const CheckpointFiles& files, Context& ctx) {
  check_tensors(files.config, files.weights->tensors);
  const std::vector<std::string> bad = find_non_finite(files.config, files.weights->tensors, ctx);
  if (bad.empty()) return;
  fail(ErrorCode::kBadInput, "in ", quote(files.folder.string()), " ", bad.size(),
       " tensors hold NaN or infinity, the first is ", bad.front(),
       "; expected finite weights to begin with; choose another checkpoint");
}

void begin_with_model(const TrainCommand& command, TrainStart& start, Context& ctx) {
  const CheckpointFiles files = open_checkpoint_files(command.init_from);
  check_weights(files, ctx);
  start.config = files.config;
  start.first_weights = files.weights;
  if (start.tokenizer.empty()) start.tokenizer = tokenizer_in(files.folder);
  record_activation(start.config, command, ctx);
}

void begin_from_scratch(const TrainCommand& command, TrainStart& start) {
  const bool by_name = !command.preset.empty(), task = !command.task.name.empty();
  start.config = task      ? task_model(command.task, command.config)
                 : by_name ? preset(command.preset)
                           : read_new_config(command.config);
  // A preset's vocabulary is only that of the authors' tokenizer.
  if (by_name) start.config.vocab = Tokenizer::load(start.tokenizer)->vocab();
  const auto activation = load_options(command.common).a_activation;
  if (activation) start.config.mixer.a_activation = *activation;
  start.config.mixer.a_activation_recorded = true;
}

TrainRecord record_of_texts(const TrainCommand& command, Compute compute) {
  TrainRecord record;
  record.options.compute = compute;
  Schedule& schedule = record.options.schedule;
  schedule.steps = command.steps.value_or(1000);
  schedule.warmup_steps = std::min<std::int64_t>(200, schedule.steps / 5);
  return record;
}

TrainStart begin(const TrainCommand& command, Context& ctx) {
  TrainStart start;
  start.folder = command.output;
  start.tokenizer = command.common.tokenizer;
  check_free(start.folder);
  const bool task = !command.task.name.empty();
  if (command.init_from.empty()) {
    begin_from_scratch(command, start);
  } else {
    begin_with_model(command, start, ctx);
  }
  check_config(start.config);
  const Compute compute = usual_compute(ctx.gpu() != nullptr);
  TrainRecord record =
      task ? task_record(command.task, compute) : record_of_texts(command, compute);
  record.options.seed = command.common.seed.value_or(std::random_device{}());
  start.record = with_given(command, std::move(record));
  TrainOptions& options = start.record.options;
  if (!command.accumulate && !task) {
    options.accumulate = default_accumulate(start.config, options, ctx);
  }
  return start;
}

constexpr const char* kTextOptions =
    "--data, --valid, --valid-split, --separator, --json-key or --cache";

bool gives_texts(const TrainCommand& command) {
  return !command.data.empty() || !command.held_out.empty() || command.valid_split ||
         command.separator || command.json_key || !command.cache.empty();
}

void refuse_other_order(const TrainCommand& command, const TrainRecord& record_before,
                        const TrainRecord& record_now) {
  const TrainOptions& before = record_before.options;
  const TrainOptions& now = record_now.options;
  check_input(before.length == now.length && before.seed == now.seed,
              "the training was made with --length ", before.length, " and --seed ", before.seed,
              "; expected the same, because they decide what its position in the data means; leave "
              "them out, or begin anew with --init-from");
  check_input(before.carry_states == now.carry_states,
              "the training was made without --carry-states; expected the same, because it decides "
              "the order of the data; leave it out, or begin anew with --init-from");
  check_input(!before.carry_states || before.batch == now.batch, "the training carries states in ",
              before.batch, " lanes, one for each window of a step; expected --batch ",
              before.batch, ", not ", now.batch, "; leave it out, or begin anew with --init-from");
  if (!record_before.task) return;
  if (gives_texts(command)) {
    fail(ErrorCode::kUsage, kTextOptions, " is given to a training of a task; expected its ",
         "generated sequences alone; leave it out");
  }
  const Json tasks[] = {to_json(*record_before.task), to_json(*record_now.task)};
  check_input(tasks[0] == tasks[1] && before.batch == now.batch,
              "the training was made with --batch ", before.batch, " on the task ", tasks[0].dump(),
              "; expected the same, because they decide what its position means; "
              "leave the options out, or begin anew");
}

void refuse_other_model(const TrainCommand& command, const ModelConfig& config) {
  const TaskCommand& task = command.task;
  const auto activation = load_options(command.common).a_activation;
  const auto& mixer = config.mixer;
  const bool same = task.width.value_or(config.width) == config.width &&
                    task.layers.value_or(config.layers) == config.layers &&
                    task.head_dim.value_or(mixer.head_dim) == mixer.head_dim &&
                    task.mlp.value_or(config.mlp_hidden) == config.mlp_hidden &&
                    (task.rope.empty() || rope_named(task.rope) == mixer.rope) &&
                    activation.value_or(mixer.a_activation) == mixer.a_activation;
  check_input(same, "the training's model has --width ", config.width, ", --layers ", config.layers,
              ", --head-dim ", mixer.head_dim, ", --mlp ", config.mlp_hidden, ", --rope ",
              rope_name(mixer.rope), " and --a-activation ", a_activation_name(mixer.a_activation),
              "; expected the same; leave them out, or begin anew");
}

// The training keeps its warm-up, which --steps may cut short where no step is left to take.
TrainRecord with_fitting_warmup(const TrainCommand& command, TrainRecord record) {
  std::int64_t& warmup = record.options.schedule.warmup_steps;
  const std::int64_t steps = command.steps.value_or(warmup);
  if (command.warmup || steps >= warmup) return record;
  check_input(steps <= record.step, "--steps ", steps, " ends the training within its warm-up of ",
              warmup, " steps; expected at least as many; give more, or --warmup too");
  warmup = steps;
  return record;
}

TrainStart resume(const TrainCommand& command, Context& ctx) {
  TrainStart start;
  start.folder = command.output.empty() ? command.resume : command.output;
  std::error_code ec;
  if (fs::equivalent(start.folder, command.resume, ec)) {
    start.lock.emplace(start.folder);
  } else {
    check_free(start.folder);
  }
  start.checkpoint = newest_train_checkpoint(command.resume, ctx);
  if (!start.checkpoint->record.task) {
    start.tokenizer = command.common.tokenizer.empty() ? tokenizer_in(command.resume)
                                                       : fs::path(command.common.tokenizer);
  }
  start.config = start.checkpoint->config;
  const TrainRecord& before = start.checkpoint->record;
  start.record = with_given(command, with_fitting_warmup(command, before));
  refuse_other_order(command, before, start.record);
  refuse_other_model(command, start.config);
  ctx.log(LogLevel::kInfo,
          str("going on after step ", before.step, " of ", start.checkpoint->folder.string()));
  for (const std::string& change : changes(before.options, start.record.options)) {
    ctx.log(LogLevel::kInfo, "from here on with " + change);
  }
  return start;
}

void check_task_command(const TrainCommand& command) {
  const auto refuse = [](bool given, const char* option, const char* instead) {
    if (given) {
      fail(ErrorCode::kUsage, option, " is given beside --task; expected ", instead,
           "; leave one of them out");
    }
  };
  refuse(gives_texts(command), kTextOptions,
         "one kind of training: on texts or on generated sequences");
  refuse(!command.preset.empty(), "--preset", "--config, or --width, --layers and --mlp");
  refuse(!command.init_from.empty(), "--init-from", "a new model");
  refuse(!command.common.tokenizer.empty(), "--tokenizer", "the task's own symbols");
  refuse(command.length.has_value(), "--length", "--stages with the longest sequences");
  refuse(command.carry_states, "--carry-states", "sequences that are whole");
  const auto refuse_both = [](bool one, const std::string& list, const char* option) {
    if (one && !list.empty()) {
      fail(ErrorCode::kUsage, option, " and ", option,
           "s are given; expected one of them; name all "
           "values in the list");
    }
  };
  refuse_both(command.rate.has_value(), command.sweep.rates, "--rate");
  refuse_both(command.common.seed.has_value(), command.sweep.seeds, "--seed");
  refuse_both(command.task.width.has_value(), command.sweep.widths, "--width");
  refuse_both(!command.task.rope.empty(), command.sweep.ropes, "--rope");
  if (!command.resume.empty()) return;
  refuse(command.steps.has_value(), "--steps", "--stage-steps, for each of --stages");
  if (command.output.empty()) {
    fail(ErrorCode::kUsage,
         "-o is missing; expected it to name the folder that is written; add it");
  }
}

}  // namespace

void check_free(const fs::path& folder) {
  check_input(
      !has_train_checkpoints(folder) && !is_there(folder / "config.json"), quote(folder.string()),
      " holds a model already; expected a new folder, or one without; continue its training "
      "with --resume, or choose another -o");
}

void check_command(const TrainCommand& command) {
  if (!command.task.name.empty()) return check_task_command(command);
  if (command.sweep.asked() || command.sweep.jobs > 0 || !command.sweep.out.empty()) {
    fail(ErrorCode::kUsage,
         "options of a sweep are given without --task; expected the task that its models learn; "
         "add it");
  }
  const TaskCommand& task = command.task;
  const bool sizes = task.width || task.layers || task.head_dim || task.mlp || !task.rope.empty();
  if (command.resume.empty() && sizes) {
    fail(ErrorCode::kUsage,
         "--width, --layers, --head-dim, --mlp or --rope is given without --task; expected the "
         "sizes of a model for texts in a config.json; name one with --config");
  }
  const int begins = int{!command.preset.empty()} + int{!command.config.empty()} +
                     int{!command.init_from.empty()} + int{!command.resume.empty()};
  if (begins != 1) {
    fail(ErrorCode::kUsage, begins, " of --preset, --config, --init-from and --resume are given",
         "; expected exactly one of them; choose where the training begins");
  }
  const double share = command.valid_split.value_or(0);
  if (share != 0 && !is_held_out_share(share)) {
    fail(ErrorCode::kUsage, "--valid-split is ", share,
         "; expected a fraction below 1, or a whole "
         "number of documents; correct the option");
  }
  if (!command.resume.empty()) return;
  const auto need = [](bool given, const char* option, const char* why) {
    if (!given) fail(ErrorCode::kUsage, option, " is missing; expected it ", why, "; add it");
  };
  need(!command.output.empty(), "-o", "to name the folder that is written");
  need(!command.data.empty(), "--data", "to name the texts");
  need(!command.common.tokenizer.empty() || !command.init_from.empty(), "--tokenizer",
       "because a new model has none");
}

Compute usual_compute(bool gpu) {
  return gpu ? Compute::kBf16 : Compute::kF32;
}

TrainRecord with_given(const TrainCommand& command, TrainRecord record) {
  TrainOptions& options = record.options;
  set(options.schedule.steps, command.steps);
  set(options.batch, command.batch);
  set(options.length, command.length);
  set(options.accumulate, command.accumulate);
  set(options.schedule.peak, command.rate);
  set(options.schedule.last, command.final_rate);
  set(options.schedule.warmup_steps, command.warmup);
  set(options.schedule.decay_from, command.decay_from);
  if (command.schedule) options.schedule.kind = schedule_kind(*command.schedule);
  if (command.recompute) options.recompute = recompute_named(*command.recompute);
  if (command.carry_states) options.carry_states = true;
  set(options.optimizer.decay, command.decay);
  set(options.optimizer.clip, command.clip);
  set(options.optimizer.beta1, command.beta1);
  set(options.optimizer.beta2, command.beta2);
  set(options.optimizer.eps, command.eps);
  set(options.z_loss, command.z_loss);
  set(options.seed, command.common.seed);
  const std::string& dtype = command.common.dtype;
  if (dtype != "auto") options.compute = dtype == "bf16" ? Compute::kBf16 : Compute::kF32;
  set(record.rhythm.eval_every, command.eval_every);
  set(record.rhythm.eval_blocks, command.eval_blocks);
  set(record.rhythm.save_every, command.save_every);
  set(record.rhythm.keep, command.keep);
  if (!command.data.empty()) record.data.files = absolute(command.data);
  if (!command.held_out.empty()) record.data.held_out = absolute(command.held_out);
  set(record.data.held_out_share, command.valid_split);
  if (!record.data.held_out.empty() && record.data.held_out_share > 0) {
    fail(ErrorCode::kUsage,
         "texts are held out by --valid and by --valid-split; expected one of "
         "them; choose one");
  }
  give_task(command.task, record.task);
  set(record.data.format.separator, command.separator);
  set(record.data.format.json_key, command.json_key);
  record.version = str(kVersion, " ", build_commit());
  record.command = command_line();
  check_train_options(options);
  return record;
}

TrainStart find_start(const TrainCommand& command, Context& ctx) {
  return command.resume.empty() ? begin(command, ctx) : resume(command, ctx);
}

}  // namespace mamba3::cli
