#include "train/training_memory.h"

#include <algorithm>

#include "core/check.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kFloatBytes = 4, kBf16Bytes = 2;

// What loss_and_gradients keeps of a token, as Recompute tells.
std::int64_t kept_floats(const ModelConfig& config, Recompute recompute) {
  const std::int64_t d = config.width, e = config.in_proj_rows(), inner = config.inner();
  const std::int64_t mlp = config.mlp_hidden > 0 ? d + 2 * config.mlp_hidden : 0;
  switch (recompute) {
    case Recompute::kNone:
      return config.layers * (d + e + inner + mlp);
    case Recompute::kScan:
      return config.layers * (d + e + mlp) + inner;
    case Recompute::kBlock:
      return config.layers * d + e + inner + mlp;
  }
  return 0;
}

std::int64_t pass_bytes(const ModelConfig& config, Recompute recompute, std::int64_t windows,
                        std::int64_t length) {
  // The most rows of logits that exist at once, and again as much for copies in their products.
  constexpr std::int64_t kLogitsRows = 512, kWithCopies = 2;
  // Of each worker of the scan's way back and of products: a bound for common numbers of threads.
  constexpr std::int64_t kWorkersBytes = std::int64_t{16} << 20;
  const std::int64_t d = config.width, e = config.in_proj_rows(), f = config.mlp_hidden;
  const std::int64_t tokens = windows * length;
  const std::int64_t streams = 5 * d;  // the residual stream, its gradient, norms
  const std::int64_t half_block = std::max(config.inner() + e, 2 * f);
  const std::int64_t copies = std::max(e, 2 * f);  // of what products read, and of a slab
  const std::int64_t token = kept_floats(config, recompute) + streams + half_block + copies;
  const std::int64_t states = 2 * config.state_bytes() / config.layers;  // and their gradients
  return kFloatBytes * tokens * token + windows * states +
         kFloatBytes * kWithCopies * std::min(tokens, kLogitsRows) * config.padded_vocab() +
         kWorkersBytes;
}

std::string gigabytes(std::int64_t bytes) {
  const std::int64_t hundredths = (bytes + 5'000'000) / 10'000'000;
  return str(hundredths / 100, ".", hundredths % 100 / 10, hundredths % 10, " GB");
}

std::string advice(const ModelConfig& config, TrainOptions options, std::int64_t available_bytes) {
  const std::int64_t fits = largest_accumulate(config, options, available_bytes);
  if (fits > 0) return str("--accumulate ", fits, " fits: choose that or less");
  options.recompute = Recompute::kBlock;
  const std::int64_t with_less_kept = largest_accumulate(config, options, available_bytes);
  if (with_less_kept > 0) {
    return str("--recompute block with --accumulate ", with_less_kept,
               " fits: choose that or less");
  }
  return str("not even one window of ", options.length,
             " tokens fits: choose a smaller model, a shorter --length or a larger machine");
}

}  // namespace

TrainingMemory training_memory_needed(const ModelConfig& config, const TrainOptions& options) {
  constexpr std::int64_t kMasterCopies = 4;  // weights, gradients, two moments
  const std::int64_t windows =
      std::clamp<std::int64_t>(options.accumulate / options.length, 1, options.batch);
  TrainingMemory need;
  need.micro_batch = windows * options.length;
  need.parameters_bytes =
      config.parameters() *
      (kMasterCopies * kFloatBytes + (options.compute == Compute::kBf16 ? kBf16Bytes : 0));
  need.pass_bytes = pass_bytes(config, options.recompute, windows, options.length);
  return need;
}

std::int64_t largest_accumulate(const ModelConfig& config, TrainOptions options,
                                std::int64_t available_bytes) {
  std::int64_t fits = 0, too_many = options.batch + 1;  // windows
  while (fits + 1 < too_many) {
    const std::int64_t middle = fits + (too_many - fits) / 2;
    options.accumulate = middle * options.length;
    const bool ok = training_memory_needed(config, options).total_bytes() <= available_bytes;
    (ok ? fits : too_many) = middle;
  }
  return fits * options.length;
}

void check_training_memory(const ModelConfig& config, const TrainOptions& options,
                           std::int64_t available_bytes) {
  const TrainingMemory need = training_memory_needed(config, options);
  if (need.total_bytes() <= available_bytes) return;
  fail(ErrorCode::kUnavailable, "micro-batches of ", need.micro_batch, " tokens need ",
       gigabytes(need.total_bytes()), " (weights, gradients and moments ",
       gigabytes(need.parameters_bytes), ", the tokens up to ", gigabytes(need.pass_bytes),
       "); expected at most what this process may use, ", gigabytes(available_bytes), "; ",
       advice(config, options, available_bytes));
}

}  // namespace mamba3
