#include "cli/bench_model.h"

#include <algorithm>
#include <chrono>

#include "core/check.h"
#include "core/gpu.h"
#include "core/op_timer.h"
#include "core/quote.h"
#include "engine/checkpoint_files.h"
#include "model/memory_needed.h"
#include "model/mixer.h"
#include "model/weights.h"

namespace mamba3::cli {

ModelConfig bench_preset(const std::string& name) {
  const bool mimo = name == "mimo-24m";
  if (name != "siso-24m" && !mimo) {
    const std::vector<std::string> known = preset_names();
    if (std::ranges::find(known, name) != known.end()) return preset(name);
    std::string list = "siso-24m, mimo-24m";
    for (const std::string& other : known) list += ", " + other;
    fail(ErrorCode::kUsage, "--preset has ", quote(name), "; expected names of ", list,
         "; correct the option");
  }
  ModelConfig config = preset(mimo ? "mimo-187m" : "siso-187m");
  config.width = 384;
  config.layers = 10;
  config.mlp_hidden = 1024;
  config.vocab = 8192;
  config.mixer.state = 64;
  return config;
}

std::vector<std::string> presets_or_default(const BenchOptions& options, const Context& ctx) {
  if (!options.presets.empty()) return options.presets;
  if (ctx.gpu()) return {"siso-1.5b", "mimo-1.5b"};
  return {"siso-187m"};
}

std::vector<std::int64_t> or_else(const std::vector<std::int64_t>& given,
                                  const std::vector<std::int64_t>& fallback) {
  return given.empty() ? fallback : given;
}

void check_models(const BenchOptions& options, Context& ctx) {
  const auto check = [&](const ModelSize& size) {
    check_layers(size.config, ctx);
    if (!ctx.gpu() || options.batches.empty()) return;
    check_memory(size, *std::max_element(options.batches.begin(), options.batches.end()),
                 ctx.gpu()->info());
  };
  if (options.presets.empty() && !options.common.model.empty()) {
    const CheckpointFiles files = open_checkpoint_files(model_folder(options.common));
    check_tensors(files.config, files.weights->tensors);
    return check({files.config, resident_bytes(files.config, files.weights->tensors)});
  }
  const DType matrices = options.common.dtype == "fp32" ? DType::kF32 : DType::kBf16;
  for (const std::string& name : presets_or_default(options, ctx)) {
    check({bench_preset(name), resident_bytes(bench_preset(name), matrices)});
  }
}

void for_each_model(const BenchOptions& options, Context& ctx,
                    const std::function<void(const NamedModel&)>& body) {
  if (options.presets.empty() && !options.common.model.empty()) {
    const std::filesystem::path folder = model_folder(options.common);
    const std::string name = std::filesystem::weakly_canonical(folder).filename().string();
    return body({name, load_model(options.common, ctx).checkpoint.model});
  }
  const bool fp32 = options.common.dtype == "fp32";
  ModelOptions model_options;
  model_options.compute = fp32 ? ComputeDType::kF32 : ComputeDType::kBf16;
  for (const std::string& name : presets_or_default(options, ctx)) {
    body({name, Model::random(bench_preset(name), fp32 ? DType::kF32 : DType::kBf16, ctx.seed(),
                              model_options, ctx)});
  }
}

const char* compute_name(const Model& model) {
  return model.compute() == ComputeDType::kBf16 ? "bf16" : "fp32";
}

std::vector<GemmShape> layer_gemms(const ModelConfig& config, std::int64_t rows) {
  const std::int64_t d = config.width, f = config.mlp_hidden;
  std::vector<GemmShape> gemms = {{rows, config.in_proj_rows(), d}, {rows, d, config.inner()}};
  if (f > 0) gemms.insert(gemms.end(), {{rows, 2 * f, d}, {rows, d, f}});
  return gemms;
}

double layer_gemm_flops(const ModelConfig& config) {
  double flops = 0;
  for (const GemmShape& gemm : layer_gemms(config, 1)) flops += gemm.flops();
  return flops * static_cast<double>(config.layers);
}

double recurrence_flops(const ModelConfig& config) {
  const std::int64_t outer_product = config.mixer.state * config.mixer.head_dim;
  return 4.0 * static_cast<double>(config.layers * config.heads() * config.mixer.rank) *
         static_cast<double>(outer_product);
}

double layer_gemm_rate(const ModelConfig& config, Compute compute, std::int64_t rows,
                       Context& ctx) {
  double flops = 0, seconds = 0;
  for (const GemmShape& gemm : layer_gemms(config, rows)) {
    flops += gemm.flops();
    seconds += gemm.flops() / measured_gemm_rate(gemm, compute, ctx);
  }
  return flops / seconds;
}

double layer_gemm_rate(const Model& model, std::int64_t rows, Context& ctx) {
  const Compute compute = model.compute() == ComputeDType::kBf16 ? Compute::kBf16 : Compute::kF32;
  return layer_gemm_rate(model.config(), compute, rows, ctx);
}

double pass_gemm_seconds(const ModelConfig& config, Compute compute, std::int64_t rows,
                         Context& ctx) {
  const auto seconds = [&](const GemmShape& forward) {
    const auto& [m, n, k] = forward;
    double sum = 0;
    for (const GemmShape& gemm : {forward, GemmShape{m, k, n}, GemmShape{n, k, m}}) {
      sum += gemm.flops() / measured_gemm_rate(gemm, compute, ctx);
    }
    return sum;
  };
  double layer = 0;
  for (const GemmShape& gemm : layer_gemms(config, rows)) layer += seconds(gemm);
  const GemmShape head{rows, config.padded_vocab(), config.width};
  return static_cast<double>(config.layers) * layer + seconds(head);
}

void add_op_shares(const std::string& name, BenchReport& report, Context& ctx,
                   const std::function<void()>& run) {
  OpTimes times;
  ctx.set_op_times(&times);
  const auto start = std::chrono::steady_clock::now();
  run();
  const std::chrono::duration<double> all = std::chrono::steady_clock::now() - start;
  ctx.set_op_times(nullptr);
  for (const auto& [op, seconds] : times.seconds) {
    BenchRow row;
    row.name = str(name, "/", op);
    row.value = 100 * seconds / all.count();
    row.unit = ctx.gpu() ? "% op by op" : "% of time";
    report.add(row);
  }
}

}  // namespace mamba3::cli
