// bench prefill: reading prompts, its FLOP/s against the rate of the same matrix products alone.
#include <algorithm>

#include "cli/bench.h"
#include "cli/bench_model.h"
#include "cli/bench_steps.h"
#include "cli/bench_timing.h"
#include "core/check.h"

namespace mamba3::cli {
namespace {

constexpr std::int64_t kMostCeilingRows = 8192;  // more do not change a product's rate
constexpr std::int64_t kShortTokens = 128;       // of the short prompts in a skewed pack

struct Prompts {
  std::int64_t batch, tokens;
};

std::vector<Prompts> prompts_of(const BenchOptions& options, const Context& ctx) {
  if (options.batches.empty() && options.tokens.empty() && ctx.gpu()) {
    return {{1, 2048}, {1, 16384}, {128, 2048}};
  }
  std::vector<Prompts> all;
  for (const std::int64_t batch : or_else(options.batches, {1})) {
    for (const std::int64_t tokens : or_else(options.tokens, {2048}))
      all.push_back({batch, tokens});
  }
  return all;
}

void measure(const NamedModel& named, const Prompts& prompts, const BenchOptions& options,
             BenchReport& report, Context& ctx) {
  const Model& model = *named.model;
  const std::int64_t tokens = prompts.batch * prompts.tokens;
  const std::int64_t most_rows = ctx.gpu() ? kMostCeilingRows : 2048;
  PrefillRun run(model, prompts.batch, prompts.tokens, ctx);
  run.seconds();  // compiles oneDNN's kernels, grows the workspace
  std::vector<double> seconds, rates;
  for (std::int64_t i = 0; i < options.repeat; ++i) {
    seconds.push_back(run.seconds());
    // Beside each repetition, since a shared machine's speed drifts.
    rates.push_back(layer_gemm_rate(model, std::min(tokens, most_rows), ctx));
  }
  const std::string batch = prompts.batch == 1 ? "" : str("/batch=", prompts.batch);
  BenchRow row;
  row.name = str("prefill/", named.name, "/", compute_name(model), batch,
                 "/tokens=", prompts.tokens, ctx.same_bits() ? "/same-bits" : "");
  row.value = static_cast<double>(tokens) / median(seconds);
  row.unit = "tokens/s";
  // Without the head: only the last token of a prompt meets it.
  row.flops = layer_gemm_flops(model.config()) + recurrence_flops(model.config());
  row.ceiling = median(rates) / *row.flops;
  report.add(row);
  BenchRow products = row;
  products.name += "/matrix products alone";
  products.flops = layer_gemm_flops(model.config());
  products.ceiling = median(rates) / *products.flops;
  report.add(products);
  add_op_shares(row.name, report, ctx, [&] { run.seconds(); });
}

// One prompt among short ones, the same tokens evenly divided, and how much longer the first takes.
void measure_skewed(const NamedModel& named, const Prompts& prompts, const BenchOptions& options,
                    BenchReport& report, Context& ctx) {
  std::vector<std::int64_t> skewed(prompts.batch, kShortTokens), even;
  skewed[prompts.batch / 2] = prompts.tokens;
  const std::int64_t tokens = prompts.tokens + (prompts.batch - 1) * kShortTokens;
  for (std::int64_t i = 0; i < prompts.batch; ++i) {
    even.push_back(tokens * (i + 1) / prompts.batch - tokens * i / prompts.batch);
  }
  PrefillRun skewed_run(*named.model, skewed, ctx), even_run(*named.model, even, ctx);
  skewed_run.seconds();
  even_run.seconds();
  std::vector<double> skewed_s, even_s;
  for (std::int64_t i = 0; i < options.repeat; ++i) {  // in turn, since a machine's speed drifts
    skewed_s.push_back(skewed_run.seconds());
    even_s.push_back(even_run.seconds());
  }
  BenchRow row;
  const std::string name =
      str("prefill/", named.name, "/", compute_name(*named.model), "/skew=", prompts.tokens, "+",
          prompts.batch - 1, "x", kShortTokens, ctx.same_bits() ? "/same-bits" : "");
  row.name = name;
  row.value = static_cast<double>(tokens) / median(skewed_s);
  row.unit = "tokens/s";
  report.add(row);
  row.name = name + "/evenly divided";
  row.value = static_cast<double>(tokens) / median(even_s);
  report.add(row);
  row.name = name + "/time over evenly divided";
  row.value = median(skewed_s) / median(even_s);
  row.unit = "x";
  report.add(row);
}

}  // namespace

void bench_prefill(const BenchOptions& options, BenchReport& report, Context& ctx) {
  const bool by_default = options.batches.empty() && options.tokens.empty() && ctx.gpu();
  check_models(options, ctx);
  for_each_model(options, ctx, [&](const NamedModel& named) {
    if (!options.skewed) {
      for (const Prompts& prompts : prompts_of(options, ctx)) {
        measure(named, prompts, options, report, ctx);
      }
    }
    if (!options.skewed && !by_default) return;
    for (const std::int64_t batch : or_else(options.batches, {128})) {
      for (const std::int64_t tokens : or_else(options.tokens, {16384})) {
        measure_skewed(named, {batch, tokens}, options, report, ctx);
      }
    }
  });
}

}  // namespace mamba3::cli
