// What inspect says about a GPU: which kernels a model gets there, the memory it needs, what fits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "cli/common.h"
#include "model/memory_needed.h"
#include "ops/mamba3_common/kernel_path.h"

namespace mamba3::cli {

struct GpuPlan {
  std::optional<GpuInfo> card;  // none: there is no GPU here, and the paths are those of an H100
  KernelPath scan, step;
  MemoryNeed need;
  std::int64_t logits_bytes = 0;   // part of the workspace
  std::int64_t largest_batch = 0;  // that fits into what the card has free; without a card 0
};

// Files can be inspected anywhere: the lack of a GPU is told, not refused.
GpuPlan plan_for_gpu(const ModelSize& size, ComputeDType compute, std::int64_t batch, int index);

std::string path_name(const KernelPath& path);  // as in docs/CLI.md
Json gpu_json(const GpuPlan& plan);
Json gpu_memory_json(const GpuPlan& plan, std::int64_t context);
std::string gpu_text(const GpuPlan& plan, std::int64_t context);

}  // namespace mamba3::cli
