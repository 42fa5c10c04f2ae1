// Speeds with their ceilings, measured in the same run on the same threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mamba3/config.h"
#include "mamba3/context.h"
#include "mamba3/model.h"

namespace mamba3 {

// One figure. Fields that do not apply are 0 or empty.
struct BenchRow {
  std::string name;
  double value = 0;
  std::string unit;
  double bytes = 0;    // that must move for one repetition
  double flops = 0;    // of one repetition
  double ceiling = 0;  // bytes/s or FLOP/s, measured in this run
  double share_of_ceiling = 0;
  std::string baseline;  // what `ratio` compares with
  double ratio = 0;
};

struct BenchOptions {
  std::string preset = "siso-187m";
  DType weights = DType::kBf16;
  ComputeDType compute = ComputeDType::kBf16;
  std::vector<std::int64_t> batches = {1};
  std::vector<std::int64_t> tokens = {2048};
  int repeat = 5;
  std::uint64_t seed = 0;
};

// Reads prompts of each length and says which share of the model's FLOP/s oneDNN reaches on the same GEMMs, and how
// the time divides among the ops.
std::vector<BenchRow> bench_prefill(const BenchOptions& options, Context& ctx);

// Decodes with each batch size and says which share of the memory's read bandwidth weights and states are moved at.
std::vector<BenchRow> bench_decode(const BenchOptions& options, Context& ctx);

// Each op at the preset's shapes.
std::vector<BenchRow> bench_kernels(const BenchOptions& options, Context& ctx);

}  // namespace mamba3
