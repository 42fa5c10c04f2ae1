// One layer of a model with random weights, for benchmarks of single ops: its parameters, states
// and inputs in the memory of a Context.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/bench_ceilings.h"
#include "cli/bench_memory.h"
#include "model/init.h"
#include "model/state_pool.h"
#include "model/weights.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3::cli {

class BenchLayer {
 public:
  // Of a model of `config`, whatever its number of layers and its vocabulary.
  BenchLayer(const ModelConfig& config, Compute compute, Context& ctx);

  const ModelConfig& config() const { return config_; }  // one layer, a vocabulary of 128
  const Mamba3Dims& dims() const { return dims_; }
  const BlockWeights& block() const { return weights_.blocks[0]; }
  Mamba3Params params() const;

  // Activations that pass between ops in bf16, as a model keeps them for prompts on such a card.
  bool has_bf16_activations() const;

  // Seconds of mamba3_scan over sequences of these lengths.
  double scan_seconds(const std::vector<std::int64_t>& lengths, std::int64_t repeat);
  // The same with mamba3_scan_backward after it.
  double scan_and_back_seconds(const std::vector<std::int64_t>& lengths, std::int64_t repeat);
  Traffic scan_traffic(const std::vector<std::int64_t>& lengths) const;
  // The fewest products of a chunked scan.
  double scan_flops(std::int64_t tokens) const;

  // Seconds of mamba3_step for one token of each of `batch` sequences, with a ring of so many
  // tokens (0: none) over whole cycles.
  double step_seconds(std::int64_t batch, std::int64_t ring_tokens, std::int64_t repeat);
  // Of the whole mixer for such a token: in_proj, step, out_proj.
  double mixer_step_seconds(std::int64_t batch, std::int64_t repeat);
  Traffic step_traffic(std::int64_t batch, std::int64_t ring_tokens) const;
  // Whether steps may have a ring here.
  bool has_ring() const;

 private:
  ModelConfig config_;
  Compute compute_;
  Context& ctx_;
  Mamba3Dims dims_;
  ModelWeights weights_;
};

}  // namespace mamba3::cli
