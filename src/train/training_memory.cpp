#include "train/training_memory.h"

#include <algorithm>

#include "core/check.h"
#include "core/gpu.h"
#include "core/memory.h"
#include "model/memory_needed.h"
#include "train/loss_and_gradients.h"
#include "train/pass_workspace.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kFloatBytes = 4, kBf16Bytes = 2;

std::string advice(const ModelConfig& config, TrainOptions options, std::int64_t available_bytes,
                   const Context& ctx, const BatchSource* data) {
  const std::int64_t fits = largest_accumulate(config, options, available_bytes, ctx, data);
  if (fits > 0) return str("--accumulate ", fits, " fits: choose that or less");
  options.recompute = Recompute::kBlock;
  const std::int64_t with_less_kept =
      largest_accumulate(config, options, available_bytes, ctx, data);
  if (with_less_kept > 0) {
    return str("--recompute block with --accumulate ", with_less_kept,
               " fits: choose that or less");
  }
  return str("not even one window of ", options.length, " tokens fits: choose a smaller model, ",
             options.carry_states ? "a smaller --batch, " : "",
             "a shorter --length or a larger machine");
}

}  // namespace

std::string describe(const TrainingMemory& need) {
  return str("micro-batches of ", need.micro_batch, " tokens need ", gigabytes(need.total_bytes()),
             " (weights, gradients and moments ", gigabytes(need.parameters_bytes),
             need.states_bytes > 0 ? ", carried states " + gigabytes(need.states_bytes) : "",
             ", the tokens up to ", gigabytes(need.pass_bytes), ")");
}

TrainingMemory training_memory_needed(const ModelConfig& config, const TrainOptions& options,
                                      const Context& ctx, const BatchSource* data) {
  constexpr std::int64_t kMasterCopies = 4;  // weights, gradients, two moments
  const std::int64_t windows =
      std::clamp<std::int64_t>(options.accumulate / options.length, 1, options.batch);
  TrainingMemory need;
  need.micro_batch = windows * options.length;
  need.parameters_bytes =
      config.parameters() *
      (kMasterCopies * kFloatBytes + (options.compute == Compute::kBf16 ? kBf16Bytes : 0));
  if (options.carry_states) {
    need.states_bytes = static_cast<std::int64_t>(LaneStates::bytes(config, options.batch));
  }
  const std::int64_t pieces = data == nullptr ? windows : data->most_pieces(windows);
  const PassShape shape =
      pass_shape(config, need.micro_batch, pieces, loss_options(options), true, ctx);
  need.pass_bytes =
      static_cast<std::int64_t>(pass_workspace_bytes(config, shape, options.compute, ctx));
  need.module_bytes = ctx.gpu() ? kGpuModuleBytes : 0;
  return need;
}

std::int64_t largest_accumulate(const ModelConfig& config, TrainOptions options,
                                std::int64_t available_bytes, const Context& ctx,
                                const BatchSource* data) {
  constexpr std::int64_t kMostTokens = 1'000'000'000;  // what --accumulate takes
  std::int64_t fits = 0;                               // windows
  std::int64_t too_many = std::min(options.batch, kMostTokens / options.length) + 1;
  while (fits + 1 < too_many) {
    const std::int64_t middle = fits + (too_many - fits) / 2;
    options.accumulate = middle * options.length;
    const TrainingMemory need = training_memory_needed(config, options, ctx, data);
    const bool ok = need.total_bytes() <= available_bytes;
    (ok ? fits : too_many) = middle;
  }
  return fits * options.length;
}

void check_training_memory(const ModelConfig& config, const TrainOptions& options,
                           std::int64_t available_bytes, const Context& ctx,
                           const BatchSource* data) {
  const TrainingMemory need = training_memory_needed(config, options, ctx, data);
  if (need.total_bytes() <= available_bytes) return;
  fail(ErrorCode::kUnavailable, describe(need), "; expected at most what ",
       ctx.gpu() ? ctx.gpu()->info().name + " has free, " : "this process may use, ",
       gigabytes(available_bytes), "; ", advice(config, options, available_bytes, ctx, data));
}

std::int64_t default_accumulate(const ModelConfig& config, const TrainOptions& options,
                                const Context& ctx) {
  constexpr std::int64_t kLeast = 4096, kMost = 65536, kKeptBytes = 12'000'000'000;
  if (!ctx.gpu()) return kLeast;
  std::int64_t tokens = kMost;
  const auto kept = [&] {
    return static_cast<std::int64_t>(
        pass_bytes(config, pass_shape(config, tokens, 1, loss_options(options), true, ctx)));
  };
  while (tokens > kLeast && kept() > kKeptBytes) tokens /= 2;
  return tokens;
}

}  // namespace mamba3
