// bench decode: one token after the other, against the roofline: a step is never faster than its
// bytes come from memory and go back, nor than its products at the best rate.
#include <algorithm>
#include <memory>

#include "cli/bench.h"
#include "cli/bench_ceilings.h"
#include "cli/bench_model.h"
#include "cli/bench_steps.h"
#include "cli/bench_timing.h"
#include "core/check.h"
#include "model/mixer.h"
#include "ops/mamba3_common/mamba3_ring.h"

namespace mamba3::cli {
namespace {

constexpr std::int64_t kManyRows = 2048;  // products of so many rows run at their best rate

// Weights are read once a step. States are read and written for each sequence; with a ring of k
// tokens they are written every k steps, one entry is written and (k - 1) / 2 are read on average.
Traffic step_traffic(const Model& model, std::int64_t batch, std::int64_t ring_tokens) {
  const ModelConfig& config = model.config();
  const auto rows = static_cast<double>(batch);
  const auto weights = static_cast<double>(model.weights_bytes());
  const double states = rows * static_cast<double>(config.state_bytes());
  if (ring_tokens <= 1) return {weights + states, states};
  const auto k = static_cast<double>(ring_tokens);
  const double entry =
      rows * static_cast<double>(config.layers * ring_bytes(mixer_dims(config), 1));
  return {weights + states + entry * (k - 1) / 2, states / k + entry};
}

double step_flops(const ModelConfig& config, std::int64_t batch) {
  const auto head = 2.0 * static_cast<double>(config.width * config.padded_vocab());
  return static_cast<double>(batch) * (layer_gemm_flops(config) + head);
}

// What bounds a step. A GPU's ceilings were measured before. A CPU's memory is measured in turns
// with the steps, as its speed drifts: all bytes at the rate of reading, which is the higher one.
struct Ceilings {
  std::unique_ptr<MachineCeilings> gpu;
  std::unique_ptr<ReadBandwidth> cpu;
};

void measure(const NamedModel& named, std::int64_t batch, const Ceilings& ceilings,
             double gemm_rate, const BenchOptions& options, BenchReport& report, Context& ctx) {
  const Model& model = *named.model;
  DecodeRun run(model, batch, options.states, ctx);
  const Traffic traffic = step_traffic(model, batch, run.ring_tokens());
  std::vector<double> rates;
  const auto measure_memory = [&] {
    if (ceilings.cpu) rates.push_back(ceilings.cpu->measure());
  };
  const double seconds =
      step_seconds(run, cycle_steps(options, ctx), options.repeat, measure_memory);
  const double floor =
      ceilings.gpu ? ceilings.gpu->memory_seconds(traffic) : traffic.bytes() / median(rates);
  const auto rows = static_cast<double>(batch);
  const double flops = step_flops(model.config(), batch);
  BenchRow row;
  row.name = str("decode/", named.name, "/", compute_name(model), "/batch=", batch,
                 options.states.ring_tokens < 0 ? "" : str("/ring=", run.ring_tokens()),
                 ctx.same_bits() ? "/same-bits" : "");
  row.value = rows / seconds;
  row.unit = "tokens/s";
  row.bytes = traffic.bytes() / rows;
  row.flops = flops / rows;
  row.ceiling = rows / std::max(floor, flops / gemm_rate);
  report.add(row);
  add_op_shares(row.name, report, ctx, [&] {
    for (int i = 0; i < 8; ++i) run.step_op_by_op();
  });
}

}  // namespace

void bench_decode(const BenchOptions& options, BenchReport& report, Context& ctx) {
  check_models(options, ctx);
  Ceilings ceilings;
  if (ctx.gpu()) {
    ceilings.gpu = std::make_unique<MachineCeilings>(bench_compute(options), ctx);
    ceilings.gpu->add_rows(report);
  } else {
    ceilings.cpu = std::make_unique<ReadBandwidth>(ctx);
  }
  for_each_model(options, ctx, [&](const NamedModel& named) {
    const double gemm_rate = layer_gemm_rate(*named.model, kManyRows, ctx);
    const auto batches =
        or_else(options.batches, ctx.gpu() ? std::vector<std::int64_t>{1, 64, 128, 256}
                                           : std::vector<std::int64_t>{1});
    for (const std::int64_t batch : batches) {
      measure(named, batch, ceilings, gemm_rate, options, report, ctx);
    }
  });
}

}  // namespace mamba3::cli
