// bench: speeds with the ceilings of this machine, measured in the same run with the same threads.
#include "cli/bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "cli/bench_model.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "core/check.h"

namespace mamba3::cli {
namespace {

struct BenchKind {
  const char* name;
  void (*run)(const BenchOptions&, BenchReport&, Context&);
};

constexpr BenchKind kKinds[] = {
    {"kernels", bench_kernels}, {"prefill", bench_prefill}, {"decode", bench_decode},
    {"train", bench_train},     {"load", bench_load},       {"table", bench_table},
};

constexpr std::int64_t kMostSequences = 1 << 16, kMostTokens = 1 << 24;

struct BenchCommand {
  BenchOptions bench;
  std::vector<std::string> kinds;
  std::string presets, batches, tokens;  // as given
};

bool asks_for(const BenchCommand& command, const std::string& kind) {
  return std::ranges::find(command.kinds, kind) != command.kinds.end();
}

int run_bench(BenchCommand& command) {
  BenchOptions& options = command.bench;
  options.presets = split_list(command.presets);
  for (const char* kind : {"kernels", "train"}) {
    if (options.common.model.empty() || !asks_for(command, kind)) continue;
    fail(ErrorCode::kUsage, "-m is given to bench ", kind,
         "; expected sizes that it fills with random weights; name them with --preset");
  }
  for (const std::string& name : options.presets) bench_preset(name);  // refuses unknown ones now
  options.batches = parse_numbers("--batch", command.batches, 1, kMostSequences);
  options.tokens = parse_numbers("--tokens", command.tokens, 1, kMostTokens);
  check_place("--out", options.out);
  if (!options.out.empty()) go_on_without_reader();
  Context ctx = make_context(options.common, choose_device(options.common));
  BenchReport report(options.common, ctx);
  if (!options.baseline.empty()) report.read_baselines(options.baseline);
  if (!options.compare.empty()) report.read_before(options.compare);
  for (const BenchKind& kind : kKinds) {
    if (asks_for(command, kind.name)) kind.run(options, report, ctx);
  }
  report.finish(options.out);
  return 0;
}

}  // namespace

Compute bench_compute(const BenchOptions& options) {
  return options.common.dtype == "fp32" ? Compute::kF32 : Compute::kBf16;
}

std::int64_t cycle_steps(const BenchOptions& options, const Context& ctx) {
  if (options.cycle > 0) return options.cycle;
  return ctx.gpu() ? 16 : 1;
}

Run add_bench(CLI::App& app) {
  auto command = std::make_shared<BenchCommand>();
  std::vector<std::string> names;
  for (const BenchKind& kind : kKinds) names.emplace_back(kind.name);
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  app.add_option("kind", command->kinds, "what to measure: " + list)
      ->type_name("KIND")
      ->required()
      ->check(one_of(names));
  BenchOptions& options = command->bench;
  app.add_option("--preset", command->presets,
                 "the authors' sizes, as siso-187m,mimo-1.5b, or siso-24m, mimo-24m")
      ->type_name("NAMES");
  app.add_option("--batch", command->batches, "sequences at once, as 1,8,32")->type_name("NUMBERS");
  app.add_option("--tokens", command->tokens,
                 "lengths of prompts, or of windows to train on, as 512,2048")
      ->type_name("NUMBERS");
  app.add_option("--repeat", options.repeat, "times each is measured; the median counts")
      ->type_name("N")
      ->check(whole_number(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--cycle", options.cycle,
                 "decoding steps that are timed together (default: 16 on a GPU, 1 on a CPU)")
      ->type_name("N")
      ->check(whole_number(1, 1'000'000));
  app.add_option(
         "--ring", options.states.ring_tokens,
         "tokens that wait beside a state before it is rewritten (default: 8 where a GPU has "
         "it); 1: every token, 0: no ring")
      ->type_name("N")
      ->check(whole_number(0, 16));
  app.add_flag("--stagger", options.states.stagger,
               "sequences rewrite their states at different steps");
  app.add_flag(
      "--skewed", options.skewed,
      "prefill: instead of equal prompts one of --tokens among --batch - 1 of 128, against "
      "as many tokens evenly divided");
  app.add_flag(
      "--full", options.full,
      "table: read the prompts and decode every token after them, instead of a few cycles");
  app.add_option("--recompute", options.recompute,
                 "train: what the way back computes again: none, scan or block (default: none)")
      ->type_name("NAME")
      ->check(one_of({"none", "scan", "block"}));
  app.add_option("--out", options.out, "write the JSON document to this file too")
      ->type_name("FILE");
  app.add_option("--baseline", options.baseline,
                 "compare with the rows of this file, which --out or eager_torch.py --json wrote")
      ->type_name("FILE");
  app.add_option("--compare", options.compare,
                 "show what is measured beside the rows of this file, which --out wrote")
      ->type_name("FILE");
  add_common_options(app, options.common);
  return [command] { return run_bench(*command); };
}

}  // namespace mamba3::cli
