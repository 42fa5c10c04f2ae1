// bench decode: one token after the other, against the roofline: a step is never faster than its
// bytes come from memory, nor than its products at oneDNN's best rate.
#include <algorithm>
#include <chrono>
#include <numeric>

#include "cli/bench.h"
#include "cli/bench_model.h"
#include "core/check.h"
#include "ops/ceilings/ceilings.h"

namespace mamba3::cli {
namespace {

constexpr int kStepsPerRepeat = 16;       // a whole period of any ring, whose steps differ
constexpr std::int64_t kManyRows = 2048;  // products of so many rows run at their best rate

class DecodeBench {
 public:
  DecodeBench(const Model& model, std::int64_t batch, const StatePoolOptions& pool, Context& ctx)
      : model_(model),
        ctx_(ctx),
        states_(model.config(), batch, ctx, pool),
        slots_(batch),
        ids_(batch) {
    std::iota(slots_.begin(), slots_.end(), 0);
    logits_.resize(static_cast<std::size_t>(batch * model.config().padded_vocab()));
  }

  // Adds the time of each of a few steps; each token is the best one of the step before. With a
  // ring the mean of them all: one step of a period takes longer than the others.
  void run(std::vector<double>& seconds) {
    double sum = 0;
    for (int i = 0; i < kStepsPerRepeat; ++i) {
      const auto start = std::chrono::steady_clock::now();
      step();
      const auto passed = std::chrono::steady_clock::now() - start;
      const double step_s = std::chrono::duration<double>(passed).count();
      sum += step_s;
      if (ring_tokens() == 0) seconds.push_back(step_s);
    }
    if (ring_tokens() > 0) seconds.push_back(sum / kStepsPerRepeat);
  }
  std::int64_t ring_tokens() const { return states_.ring_tokens(); }

 private:
  void step() {
    const std::int64_t v = model_.config().padded_vocab();
    const auto batch = static_cast<std::int64_t>(ids_.size());
    model_.step(ids_, slots_, states_, {logits_.data(), {batch, v}}, ctx_);
    const SamplingParams greedy{.temperature = 0};
    for (std::int64_t i = 0; i < batch; ++i) {
      const std::span<const float> row(logits_.data() + i * v,
                                       static_cast<std::size_t>(model_.config().vocab));
      ids_[i] = sample_token(row, {}, greedy, 0).id;
    }
  }

  const Model& model_;
  Context& ctx_;
  StatePool states_;
  std::vector<std::int32_t> slots_, ids_;
  std::vector<float> logits_;
};

}  // namespace

void bench_decode(const BenchOptions& options, BenchReport& report, Context& ctx) {
  for (const std::string& name : presets_or(options, "siso-187m")) {
    const auto model = random_model(options, name, ctx);
    const ModelConfig& config = model->config();
    const double gemm_rate = layer_gemm_rate(*model, kManyRows, ctx);
    for (const std::int64_t batch :
         options.batches.empty() ? std::vector<std::int64_t>{1} : options.batches) {
      DecodeBench bench(*model, batch, options.pool, ctx);
      std::vector<double> warm_up, seconds, ceilings;
      bench.run(warm_up);
      for (std::int64_t i = 0; i < options.repeat; ++i) {
        bench.run(seconds);
        ceilings.push_back(measured_read_bandwidth(ctx));  // beside each repetition: speeds drift
      }
      BenchRow row;
      row.name = str("decode/", name, "/", compute_name(*model), "/batch=", batch);
      if (bench.ring_tokens() > 0) row.name += str("/ring=", bench.ring_tokens());
      row.value = static_cast<double>(batch) / median(seconds);
      row.unit = "tokens/s";
      // Weights are read once a step; states are read for each sequence, and written at every step,
      // or at one of a ring's period.
      const auto period = static_cast<double>(std::max<std::int64_t>(bench.ring_tokens(), 1));
      row.bytes = static_cast<double>(model->weights_bytes()) / static_cast<double>(batch) +
                  (1 + 1 / period) * static_cast<double>(config.state_bytes());
      row.flops = layer_gemm_flops(config) +
                  2.0 * static_cast<double>(config.width * config.padded_vocab());
      row.ceiling = std::min(median(ceilings) / *row.bytes, gemm_rate / *row.flops);
      report.add(row);
      add_op_shares(row.name, report, ctx, [&] { bench.run(warm_up); });
    }
  }
}

}  // namespace mamba3::cli
