// How much memory a model needs on a device for a batch, and which batch fits: known from its
// config before anything is loaded.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "mamba3/config.h"
#include "mamba3/device.h"
#include "mamba3/tensor.h"

namespace mamba3 {

// Of a GPU's memory: kernels, their modules and cuBLASLt's, loaded when first used.
constexpr std::int64_t kGpuModuleBytes = std::int64_t{512} << 20;

// What a model's memory is computed from.
struct ModelSize {
  ModelConfig config;
  std::int64_t weights_bytes = 0;  // as they lie in the device's memory: see the functions below
};

// Weights as a device holds them: matrices as they are stored (in fp32 when they are neither bf16
// nor fp32), everything small in fp32. The tensors must be those of tensor_specs().
std::int64_t resident_bytes(const ModelConfig& config,
                            const std::map<std::string, TensorRef>& tensors);
// The same for a model whose matrices have one type.
std::int64_t resident_bytes(const ModelConfig& config, DType matrices);

struct MemoryNeed {
  std::int64_t batch = 0;  // sequences at once
  std::int64_t weights_bytes = 0;
  std::int64_t states_bytes = 0;
  // At most: activations of a prefill segment and of a step, logits, what the libraries take.
  std::int64_t workspace_bytes = 0;
  std::int64_t total_bytes() const { return weights_bytes + states_bytes + workspace_bytes; }
};

// Of one slot of a StatePool without a ring, all layers.
std::int64_t slot_bytes(const ModelConfig& config);

// On a GPU with so many multiprocessors; 0: on a CPU.
MemoryNeed memory_needed(const ModelSize& size, std::int64_t batch, std::int64_t multiprocessors);
// The largest batch whose memory_needed() is at most free_bytes; 0: not even one sequence.
std::int64_t largest_batch(const ModelSize& size, std::int64_t free_bytes,
                           std::int64_t multiprocessors);

// kUnavailable when a batch does not fit into what the GPU has free: says how much is needed for
// which batch, and what fits. For before the weights are loaded.
void check_memory(const ModelSize& size, std::int64_t batch, const GpuInfo& gpu);

}  // namespace mamba3
