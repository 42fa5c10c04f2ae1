#include "model/memory_needed.h"

#include <algorithm>

#include "core/check.h"
#include "core/memory.h"
#include "model/mixer.h"
#include "model/segments.h"
#include "ops/linear/fused_linear.h"
#include "ops/mamba3_common/mamba3_ring.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3 {
namespace {

constexpr std::int64_t kFloatBytes = 4;
// An arena grows by doubling, so it may hold twice what is in use.
constexpr std::int64_t kArenaGrowth = 2;
constexpr std::int64_t kMostBatch = std::int64_t{1} << 20;

// Of one token on its way through a block: the residual, its norm, both again of a row whose logits
// are wanted, the widest buffers that live at once, and the input of a linear as up to three bf16
// numbers.
std::int64_t activation_bytes(const ModelConfig& config) {
  const std::int64_t d = config.width, inner = config.inner(), f = config.mlp_hidden;
  const std::int64_t mixer = config.in_proj_rows() + inner;
  const std::int64_t widest_input = std::max({d, inner, f});
  const std::int64_t residual = 4 * d + d / kNormPart;
  return kFloatBytes * (residual + std::max(mixer, 3 * f)) + 3 * 2 * widest_input;
}

std::int64_t bytes_on_device(const TensorSpec& spec, DType dtype) {
  std::int64_t count = 1;
  for (const std::int64_t extent : spec.shape) count *= extent;
  const bool kept = spec.large && (dtype == DType::kBf16 || dtype == DType::kF32);
  return count * (kept ? dtype_bytes(dtype) : kFloatBytes);
}

}  // namespace

std::int64_t resident_bytes(const ModelConfig& config,
                            const std::map<std::string, TensorRef>& tensors) {
  std::int64_t bytes = 0;
  for (const TensorSpec& spec : tensor_specs(config)) {
    bytes += bytes_on_device(spec, tensors.at(spec.name).dtype);
  }
  return bytes;
}

std::int64_t resident_bytes(const ModelConfig& config, DType matrices) {
  std::int64_t bytes = 0;
  for (const TensorSpec& spec : tensor_specs(config)) bytes += bytes_on_device(spec, matrices);
  return bytes;
}

std::int64_t slot_bytes(const ModelConfig& config) {
  constexpr std::int64_t kParts = 4, kPadBytes = 64;  // each part begins on a cache line
  return config.state_bytes() + config.layers * kParts * kPadBytes;
}

namespace {

// Where the tuned step defers the writing of states: the longest ring, on the card that has one.
std::int64_t ring_slot_bytes(const ModelConfig& config) {
  constexpr int kHopper = 90;
  const Mamba3Dims dims = mixer_dims(config);
  if (!mamba3_step_path(dims, kHopper).tuned) return 0;
  return config.layers * ring_bytes(dims, kMostRingTokens);
}

}  // namespace

MemoryNeed memory_needed(const ModelSize& size, std::int64_t batch, std::int64_t multiprocessors) {
  check_input(batch >= 1 && batch <= kMostBatch, "the batch is ", batch, "; expected 1 to ",
              kMostBatch);
  const ModelConfig& config = size.config;
  const bool gpu = multiprocessors > 0;
  const std::int64_t token = activation_bytes(config);
  const std::int64_t logits = batch * config.padded_vocab() * kFloatBytes;
  MemoryNeed need;
  need.batch = batch;
  need.weights_bytes = size.weights_bytes;
  need.states_bytes = batch * (slot_bytes(config) + (gpu ? ring_slot_bytes(config) : 0));
  need.workspace_bytes =
      kArenaGrowth * (token * segment_tokens(multiprocessors) + token * batch + logits) +
      (gpu ? kGpuModuleBytes : 0);
  return need;
}

std::int64_t largest_batch(const ModelSize& size, std::int64_t free_bytes,
                           std::int64_t multiprocessors) {
  const std::int64_t one = memory_needed(size, 1, multiprocessors).total_bytes();
  if (one > free_bytes) return 0;
  // All terms are linear in the batch.
  const std::int64_t more = memory_needed(size, 2, multiprocessors).total_bytes() - one;
  return std::min(1 + (free_bytes - one) / more, kMostBatch);
}

void check_memory(const ModelSize& size, std::int64_t batch, const GpuInfo& gpu) {
  const MemoryNeed need = memory_needed(size, batch, gpu.multiprocessors);
  if (need.total_bytes() <= gpu.free_bytes) return;
  const std::int64_t fits = largest_batch(size, gpu.free_bytes, gpu.multiprocessors);
  const std::string advice =
      fits > 0 ? str("a batch of ", fits, " fits: choose that or less")
               : std::string("not even one sequence fits: use a smaller model, or --device cpu");
  fail(ErrorCode::kUnavailable, "a batch of ", batch, " needs ", gigabytes(need.total_bytes()),
       " on the GPU (weights ", gigabytes(need.weights_bytes), ", states ",
       gigabytes(need.states_bytes), ", workspace up to ", gigabytes(need.workspace_bytes),
       "); expected at most what ", gpu.name, " has free, ", gigabytes(gpu.free_bytes), "; ",
       advice);
}

}  // namespace mamba3
