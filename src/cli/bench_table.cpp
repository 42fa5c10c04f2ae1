// bench table: the paper's tables 6 and 7 on this device.
#include <algorithm>
#include <cmath>

#include "cli/bench.h"
#include "cli/bench_baselines.h"
#include "cli/bench_layer.h"
#include "cli/bench_model.h"
#include "cli/bench_steps.h"
#include "cli/bench_table_text.h"
#include "cli/bench_timing.h"
#include "cli/terminal.h"
#include "core/check.h"

namespace mamba3::cli {
namespace {

constexpr std::int64_t kPaperBatch = 128;
constexpr double kPrefillSeconds = 3;  // a length is read again only within so long

std::string table7_prefix(const std::string& model, std::int64_t batch) {
  return "table7/" + model + (batch == kPaperBatch ? "" : str("/batch=", batch));
}

void add_row(const std::string& name, double value, const char* unit,
             const std::optional<double>& authors, BenchReport& report) {
  BenchRow row;
  row.name = name;
  row.value = value;
  row.unit = unit;
  row.paper = paper_figure(name);
  row.baseline = authors ? authors : row.paper;
  report.add_silently(row);
}

// One state size of a mixer: 64 and 128 as in the paper.
Table6Row measure_state(const std::string& mixer, std::int64_t state, std::int64_t batch,
                        const BenchOptions& options, BenchReport& report, Context& ctx) {
  ModelConfig config = preset(mixer + "-1.5b");
  config.mixer.state = state;
  BenchLayer layer(config, bench_compute(options), ctx);
  Table6Row row;
  row.mixer = mixer;
  row.dtype = "fp32";
  row.state = state;
  row.kernel = 1e3 * layer.step_seconds(batch, layer.has_ring() ? 1 : 0, options.repeat);
  row.layer = 1e3 * layer.mixer_step_seconds(batch, options.repeat);
  const std::string name = str("table6/", mixer, "/state=", state, "/fp32/",
                               batch == kPaperBatch ? "" : str("batch=", batch, "/"));
  row.authors_kernel = authors_figure(name + "kernel");
  row.paper_layer = paper_figure(name + "layer");
  add_row(name + "kernel", *row.kernel, "ms", row.authors_kernel, report);
  add_row(name + "layer", *row.layer, "ms", std::nullopt, report);
  return row;
}

void run_table6(std::int64_t batch, const BenchOptions& options, BenchReport& report,
                Context& ctx) {
  std::vector<Table6Row> rows;
  for (const char* mixer : {"siso", "mimo"}) {
    for (const std::int64_t state : {64, 128}) {
      rows.push_back(measure_state(mixer, state, batch, options, report, ctx));
    }
    for (const std::int64_t state : {64, 128}) {  // states narrower than fp32 are not there yet
      Table6Row row{mixer, "bf16", state, {}, {}, {}, {}};
      const std::string name = str("table6/", mixer, "/state=", state, "/bf16/");
      if (batch == kPaperBatch) row.authors_kernel = authors_figure(name + "kernel");
      if (batch == kPaperBatch) row.paper_layer = paper_figure(name + "layer");
      rows.push_back(row);
    }
  }
  report.write(table6_text(rows, batch) + "\n");
}

// The median of as many as fit into kPrefillSeconds, of one at least. Short prompts have warmed up.
double prefill_seconds(PrefillRun& run, std::int64_t repeat) {
  std::vector<double> seconds{run.seconds()};
  const double fitting = std::min(static_cast<double>(repeat), kPrefillSeconds / seconds.front());
  while (static_cast<double>(seconds.size()) < std::floor(fitting))
    seconds.push_back(run.seconds());
  return median(seconds);
}

// The whole run, once: the prompts, and right after them as many tokens, in the same states.
double full_seconds(const NamedModel& named, std::int64_t batch, std::int64_t tokens,
                    DecodeRun& decode, const BenchOptions& options, Context& ctx) {
  ProgressBar bar(options.common, str(named.name, ": reading, then decoding ", tokens), "tokens");
  PrefillRun prompts(*named.model,
                     std::vector<std::int64_t>(static_cast<std::size_t>(batch), tokens),
                     decode.states(), ctx);
  const double prefill_s = prompts.seconds();
  decode.go_on_from(prompts.best_ids(), tokens);
  return prefill_s + decode.seconds(tokens, [&](std::int64_t done) { bar.update(done, tokens); });
}

Table7Row measure_length(const NamedModel& named, std::int64_t batch, std::int64_t tokens,
                         double step_s, DecodeRun& decode, const BenchOptions& options,
                         BenchReport& report, Context& ctx) {
  const std::string name = str(table7_prefix(named.name, batch), "/tokens=", tokens, "/");
  Table7Row row;
  row.model = named.name;
  row.tokens = tokens;
  {
    PrefillRun run(*named.model, batch, tokens, ctx);
    row.prefill = prefill_seconds(run, options.repeat);
  }
  row.ran = options.full;
  const auto count = static_cast<double>(tokens);
  row.total = options.full ? full_seconds(named, batch, tokens, decode, options, ctx)
                           : row.prefill + count * step_s;
  row.paper_prefill = paper_figure(name + "prefill");
  row.paper_total = paper_figure(name + "prefill+decode");
  row.authors_prefill = authors_figure(name + "prefill");
  const auto authors_step = authors_figure(table7_prefix(named.name, batch) + "/step");
  if (row.authors_prefill && authors_step) {
    row.authors_total = *row.authors_prefill + count * *authors_step;
  }
  add_row(name + "prefill", row.prefill, "s", row.authors_prefill, report);
  add_row(name + "prefill+decode", row.total, "s", row.authors_total, report);
  return row;
}

void run_table7(std::int64_t batch, const BenchOptions& options, BenchReport& report,
                Context& ctx) {
  const std::int64_t cycle = cycle_steps(options, ctx);
  std::vector<Table7Row> rows;
  for_each_model(options, ctx, [&](const NamedModel& named) {
    DecodeRun decode(*named.model, batch, options.states, ctx);
    const double step_s = step_seconds(decode, cycle, options.repeat);
    const std::string name = table7_prefix(named.name, batch) + "/step";
    add_row(name, step_s, "s", authors_figure(name), report);
    PrefillRun(*named.model, batch, 64, ctx).seconds();  // warms up
    for (const std::int64_t tokens : or_else(options.tokens, {512, 1024, 2048, 4096, 16384})) {
      rows.push_back(measure_length(named, batch, tokens, step_s, decode, options, report, ctx));
    }
  });
  report.write(table7_text(rows, batch, cycle));
}

}  // namespace

void bench_table(const BenchOptions& options, BenchReport& report, Context& ctx) {
  check_models(options, ctx);
  report.write(device_name(ctx) + "\n");
  for (const std::int64_t batch : or_else(options.batches, {kPaperBatch})) {
    const bool own_model = options.presets.empty() && !options.common.model.empty();
    if (!own_model) run_table6(batch, options, report, ctx);
    run_table7(batch, options, report, ctx);
  }
}

}  // namespace mamba3::cli
