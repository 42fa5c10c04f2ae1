// bench train: whole steps of a training, their FLOP/s against the rate of the same matrix products
// alone.
#include <algorithm>
#include <numeric>
#include <set>

#include "cli/bench.h"
#include "cli/bench_ceilings.h"
#include "cli/bench_layer.h"
#include "cli/bench_memory.h"
#include "cli/bench_model.h"
#include "cli/bench_timing.h"
#include "core/check.h"
#include "core/gpu.h"
#include "model/init.h"
#include "model/mixer.h"
#include "train/batch_source.h"
#include "train/learner.h"
#include "train/train_options.h"
#include "train/training_flops.h"
#include "train/training_memory.h"

namespace mamba3::cli {
namespace {

constexpr double kGigabyte = 1e9;
constexpr double kRate = 1e-4;

struct TrainCase {
  std::string preset;
  std::int64_t batch, tokens;
};

std::vector<TrainCase> cases_of(const BenchOptions& options, const Context& ctx) {
  std::vector<TrainCase> usual = {{"siso-1.5b", 4, 2048},
                                  {"mimo-1.5b", 4, 2048},
                                  {"siso-440m", 8, 2048},
                                  {"siso-24m", 128, 512},
                                  {"mimo-24m", 128, 512}};
  if (options.presets.empty() && options.batches.empty() && options.tokens.empty() && ctx.gpu()) {
    return usual;
  }
  std::vector<TrainCase> out;
  std::vector<std::string> presets = options.presets;
  if (presets.empty()) presets = {"siso-24m", "mimo-24m"};
  for (const std::string& preset : presets) {
    const auto same = std::ranges::find(usual, preset, &TrainCase::preset);
    const bool known = same != usual.end() && ctx.gpu();
    const std::int64_t few = ctx.gpu() ? 8 : 2;
    for (const std::int64_t batch : or_else(options.batches, {known ? same->batch : few})) {
      for (const std::int64_t tokens : or_else(options.tokens, {known ? same->tokens : 512})) {
        out.push_back({preset, batch, tokens});
      }
    }
  }
  return out;
}

TrainOptions train_options(const TrainCase& which, const BenchOptions& options) {
  TrainOptions out;
  out.batch = which.batch;
  out.length = which.tokens;
  out.accumulate = out.tokens_per_step();
  out.compute = bench_compute(options);
  out.recompute = recompute_named(options.recompute);
  return out;
}

// Random weights; every layer has those of the first, which take as long to learn and less to draw.
void assign_random(Learner& learner, Context& ctx) {
  ModelConfig one = learner.config();
  one.layers = 1;
  const InitialTensors drawn = init_tensors(one, DType::kF32, ctx.seed(), ctx);
  const std::string first = "backbone.layers.0.", layers = "backbone.layers.";
  std::map<std::string, TensorRef> tensors;
  for (const auto& [name, tensor] : drawn.tensors) {
    if (!name.starts_with(first)) {
      tensors[name] = tensor;
      continue;
    }
    for (std::int64_t l = 0; l < learner.config().layers; ++l) {
      tensors[str(layers, l, ".", name.substr(first.size()))] = tensor;
    }
  }
  learner.assign(tensors);
}

SequenceBatch random_batch(const TrainCase& which, std::int64_t vocab, const Context& ctx) {
  SequenceBatch out;
  out.ids = random_ids(which.batch * which.tokens, vocab, 0, ctx);
  out.targets = random_ids(which.batch * which.tokens, vocab, 1, ctx);
  for (std::int64_t i = 1; i <= which.batch; ++i) out.cu_seqlens.push_back(i * which.tokens);
  return out;
}

// Forward and backward, into fresh gradients.
void pass(Learner& learner, const SequenceBatch& batch) {
  learner.clear();
  learner.add(batch.view(), 1 / static_cast<double>(batch.ids.size()));
}

// A pass and AdamW, with everything that a training waits for.
void take_step(Learner& learner, const SequenceBatch& batch) {
  pass(learner, batch);
  learner.update(learner.figures().norm, kRate);
}

// Of the GPU's memory, by whatever runs on it: nothing is given back before the model goes.
std::int64_t used_bytes(const BenchOptions& options) {
  const GpuInfo info = gpu_info(choose_device(options.common).index);
  return info.total_bytes - info.free_bytes;
}

void add_memory_rows(const std::string& name, const TrainingMemory& need, std::int64_t bytes,
                     BenchReport& report) {
  BenchRow row;
  row.name = name + "/memory";
  row.value = static_cast<double>(bytes) / kGigabyte;
  row.unit = "GB";
  report.add(row);
  row.name = name + "/memory, computed";
  row.value = static_cast<double>(need.total_bytes()) / kGigabyte;
  report.add(row);
}

// Tokens/s if a step were nothing but its matrix products at the library's rate.
double products_ceiling(const ModelConfig& config, const TrainOptions& train, Context& ctx) {
  if (!ctx.gpu()) {
    const double seconds = pass_gemm_seconds(config, train.compute, train.tokens_per_step(), ctx);
    return static_cast<double>(train.tokens_per_step()) / seconds;
  }
  constexpr std::int64_t kMostCeilingRows = 65536;  // more do not change a product's rate
  return layer_gemm_rate(config, train.compute, std::min(train.tokens_per_step(), kMostCeilingRows),
                         ctx) /
         training_flops_per_token(config);
}

// The scan alone, forward and backward: what a training adds to its products. Each product of the
// scan has two on the way back; the columns are read again there, with y's gradient, and theirs
// written.
void measure_scan(const std::string& preset, const BenchOptions& options,
                  const MachineCeilings& ceilings, BenchReport& report, Context& ctx) {
  const std::vector<std::int64_t> lengths(ctx.gpu() ? 8 : 1, 2048);
  const auto tokens = static_cast<std::int64_t>(lengths.size()) * lengths.front();
  const Compute compute = bench_compute(options);
  BenchLayer layer(bench_preset(preset), compute, ctx);
  const Traffic once = layer.scan_traffic(lengths);
  const double columns = static_cast<double>(layer.config().in_proj_rows() * tokens);
  const Traffic traffic{2 * once.read + once.written,
                        once.written + (layer.has_bf16_activations() ? 2 : 4) * columns};
  BenchRow row;
  row.name = str("train/", preset, "/", compute == Compute::kBf16 ? "bf16" : "fp32",
                 "/scan, forward and backward/", lengths.size(), "x", lengths.front());
  row.value = 1e3 * layer.scan_and_back_seconds(lengths, options.repeat);
  row.unit = "ms";
  row.bytes = traffic.bytes();
  row.flops = 3 * layer.scan_flops(tokens);
  row.ceiling =
      1e3 * std::max(ceilings.memory_seconds(traffic), ceilings.product_seconds(*row.flops));
  report.add(row);
}

void measure(const TrainCase& which, const BenchOptions& options, BenchReport& report,
             Context& ctx) {
  const ModelConfig config = bench_preset(which.preset);
  const TrainOptions train = train_options(which, options);
  const std::int64_t used_before = ctx.gpu() ? used_bytes(options) : 0;
  const TrainingMemory need = training_memory_needed(config, train, ctx);
  if (ctx.gpu()) check_training_memory(config, train, ctx.gpu()->info().free_bytes, ctx);
  Learner learner(config, loss_options(train), train.optimizer, ctx);
  assign_random(learner, ctx);
  const SequenceBatch batch = random_batch(which, config.padded_vocab(), ctx);
  const auto seconds = [&](void (*body)(Learner&, const SequenceBatch&)) {
    return time_calls(ctx, options.repeat, [&](std::int64_t) { body(learner, batch); });
  };
  const auto tokens = static_cast<double>(train.tokens_per_step());
  BenchRow row;
  row.name = str("train/", which.preset, "/", train.compute == Compute::kBf16 ? "bf16" : "fp32",
                 "/batch=", which.batch, "/tokens=", which.tokens,
                 train.recompute == Recompute::kNone ? "" : "/recompute=" + options.recompute);
  row.value = tokens / seconds(take_step);
  row.unit = "tokens/s";
  row.flops = training_flops_per_token(config);
  row.ceiling = products_ceiling(config, train, ctx);
  report.add(row);
  if (ctx.gpu()) {
    add_memory_rows(row.name, need, used_bytes(options) - used_before, report);
  } else {
    BenchRow alone = row;
    alone.name += "/pass";
    alone.value = tokens / seconds(pass);
    report.add(alone);
  }
  add_op_shares(row.name, report, ctx, [&] { take_step(learner, batch); });
}

}  // namespace

void bench_train(const BenchOptions& options, BenchReport& report, Context& ctx) {
  const std::vector<TrainCase> cases = cases_of(options, ctx);
  for (const TrainCase& which : cases) check_layers(bench_preset(which.preset), ctx);
  for (const TrainCase& which : cases) {
    // Of its own, so that no other model's workspace is counted as its memory.
    Context own = make_context(options.common, choose_device(options.common));
    measure(which, options, report, own);
  }
  const MachineCeilings ceilings(bench_compute(options), ctx);
  std::set<std::string> seen;
  for (const TrainCase& which : cases) {
    if (seen.insert(which.preset).second) {
      measure_scan(which.preset, options, ceilings, report, ctx);
    }
  }
}

}  // namespace mamba3::cli
