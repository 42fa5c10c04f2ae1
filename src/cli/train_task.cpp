#include "cli/train_task.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "core/check.h"
#include "io/atomic_file.h"
#include "io/config_file.h"

namespace mamba3::cli {
namespace {

// Sequences of an evaluation: one in a hundred wrong is then known to within 0.5 points.
constexpr std::int64_t kEvaluated = 2048;

TaskOptions usual_task(Task task) {
  TaskOptions options;
  options.task = task;
  options.multiplication = task != Task::kModularArithmeticBrackets;
  // What 40,000 steps leave wrong are products of five factors and more without a zero, which are
  // rare (bench/results/state-tracking-modular-arithmetic-*.json).
  if (task == Task::kModularArithmetic) options.stages = {40, 80, 160, 160, 160, 160, 160, 160};
  return options;
}

// The share of the steps that are taken when the longest sequences come. The rate falls later: half
// a cosine is nearly spent by then.
double share_before_longest(const std::vector<std::int64_t>& stages) {
  const auto longest = std::ranges::max_element(stages);
  return static_cast<double>(longest - stages.begin()) / static_cast<double>(stages.size());
}

}  // namespace

void add_task_options(CLI::App& app, TaskCommand& command) {
  const char* group = "State tracking";
  const auto whole = [&](const char* name, std::optional<std::int64_t>& to, std::int64_t least,
                         const char* help) {
    app.add_option(name, to, help)
        ->type_name("N")
        ->check(whole_number(least, 1'000'000'000))
        ->group(group);
  };
  app.add_option("--task", command.name,
                 "train on sequences of a task that are generated, instead of --data: parity, "
                 "modular-arithmetic or modular-arithmetic-brackets")
      ->type_name("NAME")
      ->check(one_of(task_names()))
      ->group(group);
  app.add_option(
         "--stages", command.stages,
         "the longest sequence of each stage of the curriculum (default: 40,80,120,160; for "
         "modular-arithmetic 40,80 and six of 160)")
      ->type_name("N,N,..")
      ->group(group);
  whole("--stage-steps", command.stage_steps, 1, "steps of a stage (default: 10000)");
  whole("--min-length", command.min_length, 3, "the shortest sequence (default: 3)");
  whole("--eval-length", command.eval_length, 3,
        "length of the sequences of evaluations (default: 256)");
  app.add_flag_function(
         "--multiplication,!--no-multiplication",
         [&command](std::int64_t count) { command.multiplication = count > 0; },
         "modular arithmetic with *, or with + and - only (default: with it, but not in brackets)")
      ->group(group);
  whole("--width", command.width, 1, "d_model of a new model (default: 64)");
  whole("--layers", command.layers, 1, "its layers (default: 1 for parity, otherwise 3)");
  whole("--head-dim", command.head_dim, 1, "columns of a head (default: 32)");
  whole("--mlp", command.mlp, 0,
        "width of the MLP of each, a multiple of 128, 0: none (default: 128 for "
        "modular-arithmetic-brackets, otherwise none)");
  app.add_option("--rope", command.rope,
                 "what rotates its B and C: data-dependent, standard (fixed steps) or none "
                 "(default: data-dependent)")
      ->type_name("NAME")
      ->check(one_of(rope_names()))
      ->group(group);
}

TrainRecord task_record(const TaskCommand& command, Compute compute) {
  TrainRecord record;
  record.task = usual_task(task_named(command.name));
  give_task(command, record.task);
  TrainOptions& options = record.options;
  options.compute = compute;
  options.schedule.steps = record.task->steps();
  options.schedule.kind = ScheduleKind::kWsd;
  if (record.task->task != Task::kParity) options.schedule.peak = 2e-3;
  options.schedule.decay_from =
      std::max(options.schedule.decay_from, share_before_longest(record.task->stages));
  options.schedule.warmup_steps = options.schedule.steps / 10;
  options.batch = 256;
  options.length = record.task->stages.back();
  options.accumulate = 1 << 16;
  record.rhythm.eval_every = 1000;
  record.rhythm.eval_blocks = kEvaluated;
  record.rhythm.save_every = 1000;
  record.rhythm.keep = 1;
  return record;
}

void give_task(const TaskCommand& command, std::optional<TaskOptions>& task) {
  if (!task) {
    const bool any = !command.name.empty() || !command.stages.empty() || command.multiplication ||
                     command.stage_steps || command.min_length || command.eval_length;
    if (!any) return;
    fail(ErrorCode::kUsage,
         "options of a task are given to a training on texts; expected --task at the beginning of "
         "a training, to say which; add it or leave them out");
  }
  if (!command.name.empty()) task->task = task_named(command.name);
  set(task->multiplication, command.multiplication);
  if (!command.stages.empty()) task->stages = parse_numbers("--stages", command.stages, 3);
  set(task->stage_steps, command.stage_steps);
  set(task->min_length, command.min_length);
  set(task->eval_length, command.eval_length);
  check_task_options(*task);
}

ModelConfig task_model(const TaskCommand& command, const std::string& file) {
  const Task task = task_named(command.name);
  ModelConfig config;
  if (!file.empty()) {
    config = read_new_config(file);
  } else {
    config.width = 64;
    config.layers = task == Task::kParity ? 1 : 3;
    config.mixer.state = 64;
    // A few heads, each with a dt of its own. Parity at a width of 32, with 2,500 steps a stage, is
    // right at length 256 in one of four runs with heads of 32 and in none of four with heads of 16
    // (bench/results/gpu-parity-heads-*.json); a single head of 64 is slow to find the half turn.
    config.mixer.head_dim = 32;
    // As when the paper was written. To forget nothing in 256 tokens takes a value near 0, which
    // the heavy tail, 1 / (1 - x), only reaches far out.
    config.mixer.a_activation = AActivation::kSoftplus;
    // With MLPs models that rotate nothing learn to count; without, they learn arithmetic later or
    // not at all. In brackets, without, 36,000 steps taught no model the length of the evaluation.
    if (task == Task::kModularArithmeticBrackets) config.mlp_hidden = 128;
    // Of so few symbols a tied head would shrink with their embeddings as long as guessing is
    // best, and leave no slope to learn by: parity then stays at chance.
    config.tied_embeddings = false;
  }
  set(config.width, command.width);
  set(config.layers, command.layers);
  set(config.mlp_hidden, command.mlp);
  check_input(config.mlp_hidden % ModelConfig::kMlpMultiple == 0, "--mlp is ", config.mlp_hidden,
              "; expected a multiple of ", ModelConfig::kMlpMultiple,
              ", which the authors' package rounds it up to; correct the option");
  if (file.empty()) config.mixer.head_dim = std::min(config.mixer.head_dim, config.inner());
  set(config.mixer.head_dim, command.head_dim);
  if (!command.rope.empty()) config.mixer.rope = rope_named(command.rope);
  config.vocab = std::ssize(task_symbols(task));
  return config;
}

void write_task_tokenizer(Task task, const std::filesystem::path& folder) {
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object();
  for (const char symbol : task_symbols(task)) vocab[std::string(1, symbol)] = vocab.size();
  const nlohmann::ordered_json document{
      {"version", "1.0"},
      {"added_tokens", nlohmann::ordered_json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"},
        {"add_prefix_space", false},
        {"trim_offsets", true},
        {"use_regex", false}}},
      {"post_processor", nullptr},
      {"decoder",
       {{"type", "ByteLevel"},
        {"add_prefix_space", true},
        {"trim_offsets", true},
        {"use_regex", true}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::ordered_json::array()}}}};
  write_atomically(folder / "tokenizer.json", document.dump(1) + "\n");
}

}  // namespace mamba3::cli
