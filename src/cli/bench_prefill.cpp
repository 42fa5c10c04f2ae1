// bench prefill: reading a prompt, its FLOP/s against the rate that oneDNN reaches on the same
// matrix products.
#include <chrono>
#include <numeric>

#include "cli/bench.h"
#include "cli/bench_model.h"
#include "core/check.h"

namespace mamba3::cli {
namespace {

class PrefillBench {
 public:
  PrefillBench(const Model& model, std::int64_t tokens, Context& ctx)
      : model_(model), ctx_(ctx), states_(model.config(), 1, ctx), cu_seqlens_{0, tokens} {
    for (std::int64_t i = 0; i < tokens; ++i) {
      const double draw = uniform_draw(ctx.seed(), 0, static_cast<std::uint64_t>(i));
      ids_.push_back(static_cast<std::int32_t>(draw * static_cast<double>(model.config().vocab)));
    }
    logits_.resize(static_cast<std::size_t>(model.config().padded_vocab()));
  }

  double seconds() {
    states_.reset(0);
    const std::int32_t slot[] = {0};
    PrefillArgs args;
    args.ids = ids_;
    args.cu_seqlens = cu_seqlens_;
    args.slots = slot;
    args.last_logits = {logits_.data(), {1, model_.config().padded_vocab()}};
    const auto start = std::chrono::steady_clock::now();
    model_.prefill(args, states_, ctx_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  const Model& model_;
  Context& ctx_;
  StatePool states_;
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> cu_seqlens_;
  std::vector<float> logits_;
};

}  // namespace

void bench_prefill(const BenchOptions& options, BenchReport& report, Context& ctx) {
  for (const std::string& name : presets_or(options, "siso-187m")) {
    const auto model = random_model(options, name, ctx);
    const ModelConfig& config = model->config();
    for (const std::int64_t tokens :
         options.tokens.empty() ? std::vector<std::int64_t>{2048} : options.tokens) {
      PrefillBench bench(*model, tokens, ctx);
      bench.seconds();  // compiles oneDNN's kernels, grows the workspace
      std::vector<double> seconds, ceilings;
      for (std::int64_t i = 0; i < options.repeat; ++i) {
        seconds.push_back(bench.seconds());
        // Beside each repetition, since a shared machine's speed drifts.
        ceilings.push_back(layer_gemm_rate(*model, std::min<std::int64_t>(tokens, 2048), ctx));
      }
      BenchRow row;
      row.name = str("prefill/", name, "/", compute_name(*model), "/tokens=", tokens);
      row.value = static_cast<double>(tokens) / median(seconds);
      row.unit = "tokens/s";
      // Without the head: only the last token of a prompt meets it.
      row.flops = layer_gemm_flops(config) + recurrence_flops(config);
      row.ceiling = median(ceilings) / *row.flops;
      report.add(row);
      BenchRow products = row;
      products.name += "/matrix products alone";
      products.flops = layer_gemm_flops(config);
      products.ceiling = median(ceilings) / *products.flops;
      report.add(products);
      add_op_shares(row.name, report, ctx, [&] { bench.seconds(); });
    }
  }
}

}  // namespace mamba3::cli
