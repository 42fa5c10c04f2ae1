#include "ops/mamba3_common/kernel_path.h"

#include "core/check.h"

namespace mamba3 {

KernelPath general_for(const Mamba3Dims& dims) {
  const auto too_large = [](const char* name, std::int64_t value, std::int64_t most) {
    return KernelPath{false, str(name, " = ", value, "; a GPU's kernels are for at most ", most),
                      true};
  };
  if (dims.state > kMostStateCuda) return too_large("n", dims.state, kMostStateCuda);
  if (dims.head_dim > kMostHeadDimCuda) return too_large("p", dims.head_dim, kMostHeadDimCuda);
  return {false, "every shape", false};
}

void check_gpu_takes(const Mamba3Dims& dims) {
  const KernelPath path = general_for(dims);
  if (!path.none) return;
  fail(ErrorCode::kUnavailable, "the model's layers have ", path.because,
       ", so a smaller one was expected; use --device cpu");
}

KernelPath tuned_for(const Mamba3Dims& dims, int compute_capability) {
  if (KernelPath general = general_for(dims); general.none) return general;
  if (compute_capability != 90) {
    return {false, str("compute capability ", compute_capability / 10, ".", compute_capability % 10,
                       "; the tuned kernels are for 9.0")};
  }
  if (dims.state != 64 && dims.state != 128) {
    return {false, str("n = ", dims.state, "; the tuned kernels are for 64 and 128")};
  }
  if (dims.head_dim != 64) {
    return {false, str("p = ", dims.head_dim, "; the tuned kernels are for 64")};
  }
  if (dims.rank != 1 && dims.rank != 2 && dims.rank != 4) {
    return {false, str("r = ", dims.rank, "; the tuned kernels are for 1, 2 and 4")};
  }
  return {true, str("n = ", dims.state, ", p = ", dims.head_dim, ", r = ", dims.rank)};
}

}  // namespace mamba3
