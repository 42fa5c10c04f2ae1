// Where a Context runs its ops and keeps their tensors.
#pragma once

#include <cstdint>
#include <string>

namespace mamba3 {

enum class DeviceKind : std::uint8_t { kCpu, kCuda };

struct Device {
  DeviceKind kind = DeviceKind::kCpu;
  int index = 0;  // of several GPUs
};

struct GpuInfo {
  std::string name;            // "NVIDIA H100 80GB HBM3"
  int compute_capability = 0;  // 90 for 9.0
  int multiprocessors = 0;
  std::int64_t total_bytes = 0;
  std::int64_t free_bytes = 0;
};

// How many GPUs this build and this machine offer: 0 without CUDA, without a driver, without a
// card.
int gpu_count();
// Refused with the reason when there is no such GPU.
GpuInfo gpu_info(int index);

}  // namespace mamba3
