// The kinds of measurement that `bench` offers: one function and one file each, listed in
// bench.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/bench_report.h"
#include "cli/common.h"

namespace mamba3::cli {

struct BenchOptions {
  CommonOptions common;
  std::vector<std::string> presets;  // empty: what each kind measures by itself
  std::vector<std::int64_t> batches;
  std::vector<std::int64_t> tokens;
  std::int64_t repeat = 5;
  StatePoolOptions pool;  // of decode
  std::string out;
  std::string baseline;  // a file of rows, as --out or bench/baselines/eager_torch.py write it
};

// Time to open a checkpoint from a warm page cache, and from the start of a process to its first
// token.
void bench_load(const BenchOptions& options, BenchReport& report, Context& ctx);

// Reading prompts of --tokens, against the rate that oneDNN reaches on the same matrix products.
void bench_prefill(const BenchOptions& options, BenchReport& report, Context& ctx);

// One token after the other for --batch sequences, against the memory's read bandwidth.
void bench_decode(const BenchOptions& options, BenchReport& report, Context& ctx);

// Each op alone, at the shapes of a preset.
void bench_kernels(const BenchOptions& options, BenchReport& report, Context& ctx);

}  // namespace mamba3::cli
