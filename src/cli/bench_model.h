// What the benchmarks of whole models share.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/bench.h"
#include "mamba3/model.h"
#include "ops/ceilings/ceilings.h"

namespace mamba3::cli {

// One of the authors' sizes, or siso-24m or mimo-24m: those of the small models whose training they
// measured. Refuses another name.
ModelConfig bench_preset(const std::string& name);

// --preset, else what each kind measures by itself: siso-187m on a CPU, the two 1.5B on a GPU.
std::vector<std::string> presets_or_default(const BenchOptions& options, const Context& ctx);
std::vector<std::int64_t> or_else(const std::vector<std::int64_t>& given,
                                  const std::vector<std::int64_t>& fallback);

// Refuses at once, before ceilings are measured, what for_each_model() or a batch would refuse
// later: layers that the device does not compute, and batches of --batch that a GPU has no room
// for.
void check_models(const BenchOptions& options, Context& ctx);

struct NamedModel {
  std::string name;
  std::shared_ptr<const Model> model;
};
// Calls `body` with one model after the other: those of presets with random weights, never on a
// disk; without --preset the one that -m names, if it does.
void for_each_model(const BenchOptions& options, Context& ctx,
                    const std::function<void(const NamedModel&)>& body);
const char* compute_name(const Model& model);  // "bf16", "fp32"

// in_proj, out_proj, fc1, fc2 of one layer over `rows` tokens.
std::vector<GemmShape> layer_gemms(const ModelConfig& config, std::int64_t rows);

// One token's matrix products in all layers, without the head.
double layer_gemm_flops(const ModelConfig& config);
// One token's recurrence in all layers, as it is defined: each rank's outer product enters the
// state and is read out of it. What a chunked scan computes beyond that is not counted.
double recurrence_flops(const ModelConfig& config);
// FLOP/s of oneDNN (on a GPU of cuBLASLt) alone on those of `rows` tokens, each shape weighted by
// its share of the work.
double layer_gemm_rate(const ModelConfig& config, Compute compute, std::int64_t rows, Context& ctx);
double layer_gemm_rate(const Model& model, std::int64_t rows, Context& ctx);
// Seconds of oneDNN (on a GPU of cuBLASLt) alone on all matrix products of a training's pass over
// `rows` tokens: those of the layers and of the head, each forward, for the gradient of what it
// read and for that of its weights, every shape at its own rate.
double pass_gemm_seconds(const ModelConfig& config, Compute compute, std::int64_t rows,
                         Context& ctx);

// Rows "NAME/OP" with each op's share of the time of one call of `run`. Call it after the figures
// that count: the measuring takes time of its own, and on a GPU it waits for every op, which it
// would not do otherwise ("% of time, op by op").
void add_op_shares(const std::string& name, BenchReport& report, Context& ctx,
                   const std::function<void()>& run);

}  // namespace mamba3::cli
