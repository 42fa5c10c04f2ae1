// What becomes of a tile's sums: a warp has 16 rows of 256 columns of them, as wgmma leaves them.
// It puts them into its warpgroup's outbox in shared memory, as bf16 or fp32, and another warp
// sends them on. As bf16 they can wait in registers until the next tile's products are under way.
#pragma once

#include "device/fast_math.cuh"
#include "device/ring_position.cuh"
#include "device/tensor_copy.cuh"
#include "device/wgmma.cuh"
#include "ops/linear/half_norm_cuda.cuh"

namespace mamba3 {
namespace {

constexpr int kTileRows = 128;     // of x, in a block
constexpr int kTileWeights = 256;  // rows of weights: columns of a tile
static_assert(kTileWeights == kNormPart);
constexpr int kWarpRows = 16, kGroupWarps = 4, kGroupRows = kGroupWarps * kWarpRows;
constexpr int kNarrowColumns = 64, kWideColumns = 32;  // of a box: 128 bytes as bf16 or fp32
constexpr int kBoxWords = kNarrowColumns / 4;          // of a thread, in a box of bf16
constexpr int kBoxBytes = kGroupRows * kTileRowBytes;
constexpr int kPackedBoxes = kTileWeights / kNarrowColumns;
constexpr int kResidualBoxBytes = kTileRows * kTileRowBytes;  // of both warpgroups

#if __CUDA_ARCH__ >= 900

struct OutboxBarriers {
  Barrier full[2], empty[2];

  __device__ void init() {
    for (int i = 0; i < 2; ++i) {
      barrier_init(&full[i], kGroupWarps * kWarpArrivals);
      barrier_init(&empty[i], 1);
    }
  }
};

// A warpgroup's: boxes of 64 rows of 128 bytes, in two places in turn.
struct Outbox {
  const std::byte* places;
  OutboxBarriers& barriers;
  __device__ const std::byte* place(int side) const { return places + side * kBoxBytes; }
};

// A warp's side of it: 16 rows of the box.
struct OutboxWriter {
  Outbox outbox;
  int warp;
  int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  RingPosition<2> at;

  __device__ OutboxWriter(const Outbox& outbox_, int warp_) : outbox(outbox_), warp(warp_) {}

  __device__ std::uint32_t open() const {
    barrier_wait(&outbox.barriers.empty[at.stage], at.parity ^ 1);
    return shared_address(outbox.place(at.stage)) + warp * kWarpRows * kTileRowBytes;
  }
  __device__ void close() {
    arrive_warp(&outbox.barriers.full[at.stage], lane);
    at.next();
  }
};

// The other side, one warp: when the box is full, store(box) begins copies of it, and perhaps of
// more. Returns when they have read it.
template <class Store>
__device__ __forceinline__ void send_box(const Outbox& outbox, RingPosition<2>& at,
                                         const Store& store) {
  barrier_wait(&outbox.barriers.full[at.stage], at.parity);
  if (elect_lane()) {
    fence_async_proxy();
    store(outbox.place(at.stage));
    store_commit();
    store_wait_read<0>();
    barrier_arrive(&outbox.barriers.empty[at.stage]);
  }
  __syncwarp();
  at.next();
}

// A thread's sums, of rows lane / 4 and eight further.
struct ScaledSums {
  const float (&sums)[kTileWeights / 2];
  float2 scales;  // of the two rows
  __device__ __forceinline__ float operator()(int i) const {
    return sums[i] * (i % 4 < 2 ? scales.x : scales.y);
  }
};

// 64 columns as bf16.
__device__ __forceinline__ void put_narrow(std::uint32_t to, int lane,
                                           const std::uint32_t (&words)[kBoxWords]) {
  const unsigned row = lane % kWarpRows;
#pragma unroll
  for (int i = 0; i < kBoxWords; i += 4) {
    const unsigned piece = i / 2 + lane / kWarpRows;
    store_matrices(to + row * kTileRowBytes + ((piece ^ (row % 8)) << 4),
                   {words[i], words[i + 1], words[i + 2], words[i + 3]});
  }
}

// Where in a box of 32 columns in fp32 the columns 8 `block` + 2 (lane % 4) and the next one of row
// lane / 4 are; those of the row eight further are 8 rows behind.
__device__ __forceinline__ std::uint32_t wide_place(std::uint32_t box, int lane, unsigned block) {
  const unsigned row = lane / 4, quad = lane % 4;
  const unsigned piece = 2 * block + quad / 2;
  return box + row * kTileRowBytes + ((piece ^ row) << 4) + (quad % 2) * 8;
}

// The tile in fp32.
__device__ __forceinline__ void put_wide(const ScaledSums& value, OutboxWriter& outbox) {
#pragma unroll
  for (int c = 0; c < kTileWeights; c += kWideColumns) {
    const std::uint32_t box = outbox.open();
#pragma unroll
    for (unsigned block = 0; block < 4; ++block) {
      const std::uint32_t at = wide_place(box, outbox.lane, block);
      const int i = c / 2 + static_cast<int>(block) * 4;
      store_shared(at, uint2{__float_as_uint(value(i)), __float_as_uint(value(i + 1))});
      store_shared<8 * kTileRowBytes>(
          at, uint2{__float_as_uint(value(i + 2)), __float_as_uint(value(i + 3))});
    }
    outbox.close();
  }
}

// A tile as bf16, in boxes of 64 columns that go out one by one.
struct PackedTile {
  std::uint32_t words[kPackedBoxes][kBoxWords];
  int boxes = 0;

  __device__ __forceinline__ void pack(const ScaledSums& value) {
    const auto pair = [&](int i) { return pack_bf16(value(i), value(i + 1)); };
    pack_boxes<kPackedBoxes>(pair);
  }
  // The second half of the sums are gates of the first.
  __device__ __forceinline__ void pack_gated(const ScaledSums& value) {
    const auto gated = [&](int i) {
      const float2 gates = silu_fast(value(kTileWeights / 4 + i), value(kTileWeights / 4 + i + 1));
      return pack_bf16(value(i) * gates.x, value(i + 1) * gates.y);
    };
    pack_boxes<kPackedBoxes / 2>(gated);
  }
  __device__ __forceinline__ void forget() { forget_boxes<0>(); }
  // Box number `box`, if there is such a one.
  __device__ __forceinline__ void put(int box, OutboxWriter& outbox) const {
    if (box >= boxes) return;
    put_narrow(outbox.open(), outbox.lane, words[box]);
    outbox.close();
  }

 private:
  // Tells the compiler that what boxes from kFirst on hold is not needed any more.
  template <int kFirst>
  __device__ __forceinline__ void forget_boxes() {
    boxes = kFirst;
#pragma unroll
    for (int box = kFirst; box < kPackedBoxes; ++box) {
#pragma unroll
      for (std::uint32_t& word : words[box]) asm("" : "=r"(word));
    }
  }
  // pair(i): numbers i and i + 1 of the thread.
  template <int kCount, class Pair>
  __device__ __forceinline__ void pack_boxes(const Pair& pair) {
    forget_boxes<kCount>();
#pragma unroll
    for (int box = 0; box < kCount; ++box) {
#pragma unroll
      for (int i = 0; i < kBoxWords; ++i) words[box][i] = pair(2 * (box * kBoxWords + i));
    }
  }
};

// A thread's part of a tile that joins the residual, of which two boxes at a time lie in shared
// memory.
struct ResidualRows {
  const ResidualJob& job;
  int lane, column;  // of the residual, the first one of this thread
  float2 weights[kBoxWords / 2];
  float squares[2] = {};

  __device__ ResidualRows(const ResidualJob& job_, int lane_, int out)
      : job(job_), lane(lane_), column(out + lane_ % 4 * 2) {}

  __device__ __forceinline__ void load_weights(int c) {
#pragma unroll
    for (int piece = 0; piece < kBoxWords / 2; ++piece) {
      weights[piece] = *reinterpret_cast<const float2*>(job.weight + column + c + 8 * piece);
    }
  }
  // Columns from c on: the sums join what is in the boxes; `words`: the same, scaled, as bf16.
  __device__ __forceinline__ void add(const float (&sums)[kTileWeights / 2], int c,
                                      std::uint32_t boxes, std::uint32_t (&words)[kBoxWords]) {
#pragma unroll
    for (int piece = 0; piece < kBoxWords / 2; ++piece) {
      const std::uint32_t place =
          wide_place(boxes + piece / 4 * kResidualBoxBytes, lane, piece % 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t at = place + half * 8 * kTileRowBytes;
        const int i = c / 2 + 4 * piece + 2 * half;
        float2 v = load_shared_pair(at);
        v.x += sums[i], v.y += sums[i + 1];
        store_shared(at, uint2{__float_as_uint(v.x), __float_as_uint(v.y)});
        squares[half] = fmaf(v.y, v.y, fmaf(v.x, v.x, squares[half]));
        words[2 * piece + half] = pack_bf16(v.x * weights[piece].x, v.y * weights[piece].y);
      }
    }
  }
  // After the last columns of the tile, which begins at (row, out).
  __device__ __forceinline__ void put_squares(int row, int out) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = lanes_sum<4>(squares[half]);
      const int r = row + lane / 4 + 8 * half;
      if (lane % 4 != 0 || r >= job.rows) continue;
      job.squares[std::int64_t{r} * job.parts + out / kNormPart] = sum;
    }
  }
};

#endif

}  // namespace
}  // namespace mamba3
