// The kinds of measurement that `bench` offers: one function and one file each, listed in
// bench.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/bench_report.h"
#include "cli/common.h"
#include "mamba3/model.h"
#include "ops/linear/linear.h"

namespace mamba3::cli {

struct BenchOptions {
  CommonOptions common;
  std::vector<std::string> presets;  // empty: what each kind measures by itself
  std::vector<std::int64_t> batches;
  std::vector<std::int64_t> tokens;
  std::int64_t repeat = 5;
  std::int64_t cycle = 0;          // steps that are timed together; 0: see cycle_steps()
  bool full = false;               // tables: decode every token
  bool skewed = false;             // prefill: one long prompt among short ones
  StatePoolOptions states;         // of decoding
  std::string recompute = "none";  // of training
  std::string out;
  std::string compare;   // a file of rows to show beside what is measured
  std::string baseline;  // a file of rows, as --out or bench/baselines/eager_torch.py write it
};

// What --dtype asks for; bf16 when it leaves the choice.
Compute bench_compute(const BenchOptions& options);

// Steps of a cycle: as --cycle says, else 16 on a GPU, where the states may be written back every
// 1, 8 or 16 tokens, and 1 on a CPU, where all steps are alike.
std::int64_t cycle_steps(const BenchOptions& options, const Context& ctx);

// Time to open a checkpoint from a warm page cache, and from the start of a process to its first
// token.
void bench_load(const BenchOptions& options, BenchReport& report, Context& ctx);

// Reading --batch prompts of --tokens, against the rate that oneDNN or cuBLASLt reaches on the same
// matrix products.
void bench_prefill(const BenchOptions& options, BenchReport& report, Context& ctx);

// One token after the other for --batch sequences, against the memory's bandwidth.
void bench_decode(const BenchOptions& options, BenchReport& report, Context& ctx);

// Whole steps of a training, forward, backward and AdamW, of --batch windows of --tokens.
void bench_train(const BenchOptions& options, BenchReport& report, Context& ctx);

// Each op alone, at the shapes of a preset.
void bench_kernels(const BenchOptions& options, BenchReport& report, Context& ctx);

// The paper's tables 6 and 7.
void bench_table(const BenchOptions& options, BenchReport& report, Context& ctx);

}  // namespace mamba3::cli
