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
constexpr int kMostStages = 4;
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
  int stages;     // of the ring, at most kMostStages
  int tile_rows;  // of weights in a stage, at most kTileRows; with SwiGLU the lower half are gates
  __device__ int tile_outs() const { return gate_rows > 0 ? tile_rows / 2 : tile_rows; }
};

#if __CUDA_ARCH__ >= 900

struct Ring {
  Barrier full[kMostStages], empty[kMostStages];
};

struct Position {
  int stages;
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ explicit Position(const StreamJob& job) : stages(job.stages) {}
  __device__ int offset(const StreamJob& job) const { return stage * job.tile_rows * kRowBytes; }
  __device__ void next() {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

// A barrier of the warps that multiply.
__device__ __forceinline__ void wait_for_warps() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// Part `index` of `parts` of nearly equal size.
struct Even {
  int each, rest;
  __device__ Even(int count, int parts) : each(count / parts), rest(count % parts) {}
  __device__ int begin(int index) const { return index * each + min(index, rest); }
  __device__ int size(int index) const { return each + (index < rest ? 1 : 0); }
};

// This block's outputs, in tiles.
struct Share {
  int first, tiles;
  Even split;

  __device__ explicit Share(const StreamJob& job)
      : Share(job, Even(job.outs, static_cast<int>(gridDim.x)), static_cast<int>(blockIdx.x)) {}
  __device__ int begin(int tile) const { return first + split.begin(tile); }
  __device__ int outs(int tile) const { return split.size(tile); }

 private:
  __device__ Share(const StreamJob& job, const Even& blocks, int block)
      : first(blocks.begin(block)),
        tiles((blocks.size(block) + job.tile_outs() - 1) / job.tile_outs()),
        split(blocks.size(block), tiles) {}
};

__device__ __forceinline__ void copy_rows(const __nv_bfloat16* from, int pitch, int rows,
                                          std::uint32_t bytes, std::byte* to, Barrier* full,
                                          std::uint64_t policy) {
#pragma unroll 4
  for (int row = 0; row < rows; ++row, from += pitch, to += kRowBytes) {
    bulk_copy(to, from, bytes, full, policy);
  }
}

// The copying warp's one lane that copies: addresses that are the same in the whole warp cost it
// least.
__device__ void copy_weights(const StreamJob& job, const Share& share, std::byte* stages,
                             Ring& ring) {
  const bool gated = job.gate_rows > 0;
  const std::uint64_t policy = read_once_policy();
  Position at(job);
  int asked = 0;
  for (int tile = 0; tile < share.tiles; ++tile) {
    const int outs = share.outs(tile);
    const __nv_bfloat16* from = job.w + std::int64_t{share.begin(tile)} * job.k;
    for (int k = 0; k < job.k; k += kChunk, ++asked) {
      const std::uint32_t bytes = static_cast<std::uint32_t>(min(kChunk, job.k - k)) * 2;
      if (asked >= job.stages) barrier_wait(&ring.empty[at.stage], at.parity ^ 1);
      // While the ring fills a stage at a time: more at once would stand before what the kernel
      // ahead still loads.
      if (asked > 0 && asked < job.stages) barrier_wait(&ring.full[asked - 1], 0);
      Barrier* const full = &ring.full[at.stage];
      std::byte* const to = stages + at.offset(job);
      if (elect_lane()) {
        barrier_arrive_expecting(full, bytes * (gated ? 2 * outs : outs));
        copy_rows(from + k, job.k, outs, bytes, to, full, policy);
        if (gated) {
          copy_rows(from + job.gate_rows * job.k + k, job.k, outs, bytes,
                    to + job.tile_outs() * kRowBytes, full, policy);
        }
      }
      at.next();
      // Early, since starting a kernel takes long; but what it asks for delays this one.
      if (asked == 1) start_successor();
    }
  }
  start_successor();  // of a single stage
}

#endif

}  // namespace
}  // namespace mamba3
