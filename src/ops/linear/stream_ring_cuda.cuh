// The weights of one block on their way: a ring of stages in shared memory, filled by one warp with
// bulk copies that start before the kernel ahead has ended, since weights depend on nobody.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "device/bulk_copy.cuh"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"

namespace mamba3 {
namespace {

constexpr int kWarps = 8;  // that multiply
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kBlockThreads = kThreads + kWarpLanes;  // and one warp that copies
constexpr int kTileRows = 16;                         // of weights, in one mma
constexpr int kColumns = 8;                           // rows of x, in one mma
constexpr int kMostRows = 16;
// Numbers along k in one stage of the ring: 2 KiB of a row, below which memory gives less.
constexpr int kChunk = 1024;
constexpr int kWarpChunk = kChunk / kWarps;
constexpr int kHalf = 32;  // numbers along k that a warp loads at once, 8 a lane
constexpr int kHalves = kWarpChunk / kHalf;
constexpr int kMostK = 4096;
constexpr int kMostHeld = 4;  // chunks of eight rows of x in a thread's registers
// 64 bytes more than a row has, so that eight lanes find their 16 bytes in different banks.
constexpr int kRowBytes = kChunk * 2 + 64;
constexpr int kStageBytes = kTileRows * kRowBytes;
// Two blocks fit on a multiprocessor: the next kernel's fetches while this one's works.
constexpr int kStages = 3;
constexpr int kTileValues = kTileRows * kColumns;
// fp32 x that finds room in bf16 where the warps' sums of eight rows of x come later.
constexpr int kMostStaged = 2 * kWarps * kTileValues * static_cast<int>(sizeof(float)) / 2;

struct StreamJob {
  const __nv_bfloat16* w;
  std::int64_t gate_rows;  // from a row to the row of its gate; 0: no SwiGLU
  int outs, k;
  const void* x;
  std::int64_t x_stride;
  bool x_is_bf16;
  bool staged;               // x goes through shared memory
  const float* norm_weight;  // or null; only where x is staged
  double eps;
  void* y;
  std::int64_t y_stride;
  bool y_is_bf16, accumulate;
  int rows;
};

#if __CUDA_ARCH__ >= 900

struct Ring {
  Barrier full[kStages], empty[kStages];
};

struct Position {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// A barrier of the warps that multiply.
__device__ __forceinline__ void wait_for_warps() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// This block's outputs, in tiles of nearly equal size.
struct Share {
  int first, count, tiles;
  __device__ explicit Share(const StreamJob& job) {
    const std::int64_t outs = job.outs;
    first = static_cast<int>(outs * blockIdx.x / gridDim.x);
    count = static_cast<int>(outs * (blockIdx.x + 1) / gridDim.x) - first;
    const int most = job.gate_rows > 0 ? kTileRows / 2 : kTileRows;
    tiles = (count + most - 1) / most;
  }
  __device__ int begin(int tile) const {
    return first + static_cast<int>(std::int64_t{count} * tile / tiles);
  }
};

// The copying warp: a lane a row of the tile. With SwiGLU the gates are the lower eight rows.
__device__ void copy_weights(const StreamJob& job, const Share& share, std::byte* stages,
                             Ring& ring) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const bool gated = job.gate_rows > 0;
  const std::uint64_t policy = read_once_policy();
  Position at;
  int asked = 0;
  for (int tile = 0; tile < share.tiles; ++tile) {
    const int begin = share.begin(tile);
    const int outs = share.begin(tile + 1) - begin;
    const int out = gated ? lane % (kTileRows / 2) : lane;
    const bool mine = lane < kTileRows && out < outs;
    const std::int64_t row = begin + out + (gated && lane >= kTileRows / 2 ? job.gate_rows : 0);
    for (int k = 0; k < job.k; k += kChunk, ++asked) {
      const std::uint32_t bytes = static_cast<std::uint32_t>(min(kChunk, job.k - k)) * 2;
      if (asked >= kStages) barrier_wait(&ring.empty[at.stage], at.parity ^ 1);
      if (lane == 0) {
        barrier_arrive_expecting(&ring.full[at.stage], bytes * (gated ? 2 * outs : outs));
      }
      __syncwarp();
      if (mine) {
        bulk_copy(stages + at.stage * kStageBytes + lane * kRowBytes, job.w + row * job.k + k,
                  bytes, &ring.full[at.stage], policy);
      }
      at.next();
      // Early: starting a kernel takes longer than what it asks for delays this one.
      if (asked == kStages - 1) start_successor();
    }
  }
  start_successor();  // where the ring was not filled
}

#endif

}  // namespace
}  // namespace mamba3
