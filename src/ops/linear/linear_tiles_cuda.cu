// Products of many rows with SwiGLU behind them, with outputs of both types, or that begin the norm
// behind them: blocks that stay on their multiprocessor walk over tiles of 128 rows of x by 256
// rows of weights. One warp copies x and weights into a ring in shared memory; two warpgroups
// multiply, 64 rows of x each, and write what they have summed, one while the other still
// multiplies. Two blocks of a cluster share the weights: each copies half of them for both.
//
// A sum runs along k in one order whatever the tile, so a row's bits do not depend on other rows.
#include <cuda_bf16.h>

#include <algorithm>

#include "device/cluster.cuh"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "device/tensor_copy.cuh"
#include "device/wgmma_widths.cuh"
#include "ops/launch.cuh"
#include "ops/linear/half_norm_cuda.cuh"
#include "ops/linear/linear_tiles_cuda.h"
#include "ops/tensor_map.h"

namespace mamba3 {
namespace {

constexpr int kTileRows = 128;     // of x, in a block
constexpr int kTileWeights = 256;  // rows of weights
static_assert(kTileWeights == kNormPart);
constexpr int kHalf = 128;  // rows of weights that one block of the cluster copies
constexpr int kStages = 4;
constexpr unsigned kBlocks = 2;  // of a cluster
constexpr int kGroupRows = 64;   // of x, of a warpgroup
constexpr int kConsumers = 2;    // warpgroups that multiply
constexpr int kGroupThreads = 128;
constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kConsumerWarps = kConsumers * kGroupThreads / kWarpLanes;
constexpr int kWarpRows = kGroupRows / 4;

struct TilesJob {
  int rows, outs, k;
  int gate_rows;  // from a row of weights to that of its gate; 0: no SwiGLU
  int wide_from;  // outputs from here on are fp32
  RowScales scales;
  ResidualJob residual;      // of products that begin a norm
  int row_tiles, out_tiles;  // of a cluster
  __host__ __device__ int tile_outs() const { return gate_rows > 0 ? kHalf : kTileWeights; }
};

#if __CUDA_ARCH__ >= 900

constexpr int kDepth = kTileColumns;  // along k, in a stage
// Row tiles of clusters whose weights are read at about one time: so much of x stays in the L2.
constexpr int kBand = 16;
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
// The residual that a tile is added to is fetched to the L2 while the tile is multiplied: so many
// stages before its end the first of the boxes of 32 columns, another one at every second stage.
constexpr int kResidualStages = 24;
constexpr int kResidualBoxes = kTileWeights / 32;

struct alignas(1024) Stage {
  __nv_bfloat16 x[kTileRows * kDepth];
  __nv_bfloat16 w[kTileWeights * kDepth];
};
constexpr int kOutboxBytes = kWarpRows * kTileRowBytes;

struct Shared {
  Stage stages[kStages];
  std::byte outboxes[kConsumerWarps][2][kOutboxBytes];
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

// The tiles of this block in turn. Clusters walk through a band of row tiles, all of it for some
// weights before the next weights.
struct Walk {
  int index = static_cast<int>(blockIdx.x / kBlocks);
  int row, out;  // where the tile begins

  // False when there are no more.
  __device__ bool find(const TilesJob& job) {
    if (index >= job.row_tiles * job.out_tiles) return false;
    const int band = index / (kBand * job.out_tiles), first = band * kBand;
    const int height = min(kBand, job.row_tiles - first);
    const int within = index - first * job.out_tiles;
    row =
        ((first + within % height) * static_cast<int>(kBlocks) + static_cast<int>(cluster_rank())) *
        kTileRows;
    out = within / height * job.tile_outs();
    return true;
  }
  __device__ void next() { index += static_cast<int>(gridDim.x / kBlocks); }
};

__device__ __forceinline__ void prefetch_residual(const CUtensorMap& residual, int row, int out,
                                                  int stages_left) {
  const int box = (kResidualStages - stages_left) / 2;
  if (stages_left > kResidualStages || stages_left % 2 != 0 || box >= kResidualBoxes) return;
  prefetch_box(residual, out + box * 32, row);
}

// One warp: what all tiles of this block read, in the order in which they read it.
template <bool kAdds>
__device__ void load_stages(const TilesJob& job, const CUtensorMap& x, const CUtensorMap& w,
                            const CUtensorMap& residual, Shared& shared) {
  const int rank = static_cast<int>(cluster_rank());
  Position at;
  for (Walk tile; tile.find(job); tile.next()) {
    const int weights = tile.out + rank * (job.gate_rows > 0 ? job.gate_rows : kHalf);
    for (int k = 0; k < job.k; k += kDepth, at.next()) {
      barrier_wait(&shared.empty[at.stage], at.parity ^ 1);
      if (!elect_lane()) continue;
      Stage& stage = shared.stages[at.stage];
      Barrier* const full = &shared.full[at.stage];
      barrier_arrive_expecting(full, sizeof(Stage));
      load_box(stage.x, x, k, tile.row, full);
      load_box(stage.w + rank * kHalf * kDepth, w, k, weights, full, (1u << kBlocks) - 1);
      if (kAdds) {
        prefetch_residual(residual, tile.row, tile.out, (job.k - k + kDepth - 1) / kDepth);
      }
    }
  }
}

// The blocks of the cluster may fill the stage again, as far as this warp is concerned.
__device__ __forceinline__ void release(Shared& shared, int stage) {
  const unsigned lane = threadIdx.x % kWarpLanes;
  if (lane < kBlocks) barrier_arrive_at(&shared.empty[stage], lane);
}

// 64 rows of x by a tile's weights, along all of k. While the last products are under way it calls
// `meanwhile`.
template <class Meanwhile>
__device__ __forceinline__ void multiply(const TilesJob& job, Shared& shared, int group,
                                         Position& at, float (&sums)[kTileWeights / 2],
                                         const Meanwhile& meanwhile) {
  const std::uint64_t x0 =
      wgmma_operand(shared_address(shared.stages[0].x + group * kGroupRows * kDepth));
  const std::uint64_t w0 = wgmma_operand(shared_address(shared.stages[0].w));
#pragma unroll
  for (float& sum : sums) sum = 0;
  int before = 0;
  for (int k = 0; k < job.k; k += kDepth) {
    barrier_wait(&shared.full[at.stage], at.parity);
    const std::uint32_t offset = static_cast<std::uint32_t>(at.stage) * sizeof(Stage);
    const std::uint64_t x = wgmma_further(x0, offset), w = wgmma_further(w0, offset);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      wgmma_k16(sums, wgmma_further(x, step * 32), wgmma_further(w, step * 32));
    }
    wgmma_commit();
    if (k + kDepth >= job.k) meanwhile();
    wgmma_wait<1>();
    if (k > 0) release(shared, before);
    before = at.stage;
    at.next();
  }
  wgmma_wait<0>();
  wgmma_hold(sums);
  release(shared, before);
}

// A warp's way out: 16 rows of 128 bytes at a time lie in shared memory until a copy has taken
// them, in two places in turn.
struct Outbox {
  std::uint32_t address;
  const std::byte* bytes;
  int lane, side = 0;

  __device__ Outbox(Shared& shared, int warp)
      : address(shared_address(shared.outboxes[warp][0])),
        bytes(shared.outboxes[warp][0]),
        lane(static_cast<int>(threadIdx.x) % kWarpLanes) {}

  __device__ std::uint32_t open() const {
    if (lane == 0) store_wait_read<1>();
    __syncwarp();
    return address + side * kOutboxBytes;
  }
  __device__ void send(const CUtensorMap& y, int column, int row) {
    fence_async_proxy();
    __syncwarp();
    if (lane == 0) {
      store_box(y, column, row, bytes + side * kOutboxBytes);
      store_commit();
    }
    side ^= 1;
  }
};

// 64 columns as bf16; value(i): number i of a thread, as wgmma leaves them.
template <class Value>
__device__ __forceinline__ void put_narrow(std::uint32_t to, int lane, const Value& value) {
  const unsigned row = lane % kWarpRows;
#pragma unroll
  for (int piece = 0; piece < 8; piece += 2) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = pack_bf16(value(piece * 4 + 2 * i), value(piece * 4 + 2 * i + 1));
    }
    const unsigned mine = piece + lane / kWarpRows;
    store_matrices(to + row * kTileRowBytes + ((mine ^ (row % 8)) << 4),
                   {words[0], words[1], words[2], words[3]});
  }
}

// 32 columns in fp32.
template <class Value>
__device__ __forceinline__ void put_wide(std::uint32_t to, int lane, const Value& value) {
  const unsigned row = lane / 4, quad = lane % 4;
#pragma unroll
  for (unsigned block = 0; block < 4; ++block) {
    const unsigned piece = 2 * block + quad / 2;
    const std::uint32_t at = to + row * kTileRowBytes + ((piece ^ row) << 4) + (quad % 2) * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = static_cast<int>(block) * 4 + half * 2;
      store_shared(at + half * 8 * kTileRowBytes,
                   uint2{__float_as_uint(value(i)), __float_as_uint(value(i + 1))});
    }
  }
}

// What a warp has summed of a tile, which begins at (row, out), goes to y, multiplied by the scales
// of the thread's two rows.
__device__ __forceinline__ void send_tile(const TilesJob& job, const CUtensorMap& narrow,
                                          const CUtensorMap& wide, int row, int out, float2 scales,
                                          Outbox& outbox, const float (&sums)[kTileWeights / 2]) {
  if (row >= job.rows) return;
  const auto value = [&](int i) { return sums[i] * (i % 4 < 2 ? scales.x : scales.y); };
  if (job.gate_rows > 0) {
#pragma unroll
    for (int c = 0; c < kHalf; c += 64) {
      put_narrow(outbox.open(), outbox.lane,
                 [&](int i) { return value(c / 2 + i) * silu_fast(value(kHalf / 2 + c / 2 + i)); });
      outbox.send(narrow, out + c, row);
    }
  } else if (out < job.wide_from) {
#pragma unroll
    for (int c = 0; c < kTileWeights; c += 64) {
      put_narrow(outbox.open(), outbox.lane, [&](int i) { return value(c / 2 + i); });
      outbox.send(narrow, out + c, row);
    }
  } else {
#pragma unroll
    for (int c = 0; c < kTileWeights; c += 32) {
      put_wide(outbox.open(), outbox.lane, [&](int i) { return value(c / 2 + i); });
      outbox.send(wide, out - job.wide_from + c, row);
    }
  }
}

// The sums join the residual, and its scaled numbers go to the next product.
__device__ __forceinline__ void add_tile(const ResidualJob& job, ResidualRows& residual, int row,
                                         int out, const Outbox& outbox,
                                         const float (&sums)[kTileWeights / 2]) {
  const unsigned r = outbox.lane / 8, piece = outbox.lane % 8;
#pragma unroll
  for (int strip = 0; strip < ResidualRows::kStrips; ++strip) {
    const std::uint32_t box = outbox.address + strip % 2 * kOutboxBytes;
    put_wide(box, outbox.lane, [&](int i) { return sums[strip * 16 + i]; });
    __syncwarp();
#pragma unroll
    for (unsigned i = 0; i < ResidualRows::kRows; ++i) {
      const unsigned mine = r + 4 * i;
      const uint4 sum = load_shared_piece(box + mine * kTileRowBytes + ((piece ^ (mine % 8)) << 4));
      residual.add(job, row, out, strip, static_cast<int>(i), sum);
    }
    residual.next(strip);
  }
  residual.put_squares(job, row, out);
}

template <bool kAdds>
__device__ void multiply_tiles(const TilesJob& job, const CUtensorMap& narrow,
                               const CUtensorMap& wide, Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes - 4, group = warp / 4;
  Outbox outbox(shared, warp);
  Position at;
  float sums[kTileWeights / 2];
  for (Walk tile; tile.find(job); tile.next()) {
    const int row = tile.row + warp * kWarpRows;
    if constexpr (kAdds) {
      ResidualRows residual;
      multiply(job, shared, group, at, sums, [&] { residual.begin(job.residual, row, tile.out); });
      if (row < job.rows) add_tile(job.residual, residual, row, tile.out, outbox, sums);
    } else {
      float2 scales;
      multiply(job, shared, group, at, sums,
               [&] { scales = scales_of_rows(job.scales, row + outbox.lane / 4); });
      send_tile(job, narrow, wide, row, tile.out, scales, outbox, sums);
    }
  }
  if (outbox.lane == 0) store_wait_read<0>();
}

#endif

// kAdds: onto the residual, which is `wide`, and no other output is a tensor map's.
template <bool kAdds>
__global__ void __launch_bounds__(kThreads, 1)
    linear_tiles(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                 const __grid_constant__ CUtensorMap narrow,
                 const __grid_constant__ CUtensorMap wide, const TilesJob job) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ std::byte memory[];
  Shared& shared =
      *reinterpret_cast<Shared*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], kBlocks * kConsumerWarps);
    }
    barrier_init_done();
  }
  cluster_sync_relaxed();
  wait_for_predecessor();
  if (threadIdx.x < kGroupThreads) {
    wgmma_give_registers<kProducerRegisters>();
    if (threadIdx.x < kWarpLanes) {
      load_stages<kAdds>(job, x, w, wide, shared);
      start_successor();
    }
  } else {
    wgmma_take_registers<kConsumerRegisters>();
    multiply_tiles<kAdds>(job, narrow, wide, shared);
  }
  // A block's memory stays until what its neighbour releases there has arrived.
  cluster_sync();
#endif
}

constexpr std::size_t kSharedBytes = std::size_t{kStages} * (kTileRows + kTileWeights) * 128 +
                                     kConsumerWarps * 2 * kWarpRows * 128 + 1024 + 1024;

int ceil_div(std::int64_t a, std::int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

bool takes_outputs(const FusedLinearArgs& args) {
  const HalfNorm& half = args.half_norm;
  const bool on_16_bytes = tensor_map_takes(args.y);
  if (half.weight != nullptr) {
    return on_16_bytes && args.squares == nullptr && args.y.shape[1] % kNormPart == 0 &&
           tensor_map_takes(half.scaled) && reinterpret_cast<std::uintptr_t>(half.weight) % 16 == 0;
  }
  if (!on_16_bytes || !args.y.is_bf16()) return false;
  if (args.squares != nullptr && args.x.shape[1] % kNormPart != 0) return false;
  // A tile is of one type. A plain product is left to cuBLASLt, which is as fast.
  return args.swiglu || (args.rest.data != nullptr && args.y.shape[1] % kTileWeights == 0 &&
                         tensor_map_takes(args.rest));
}

template <bool kAdds>
void launch(const FusedLinearArgs& args, const TilesJob& job, const CUtensorMap& narrow,
            const CUtensorMap& wide, Context& ctx) {
  const ConstMatrix w = TensorView<const Bf16, 2>(reinterpret_cast<const Bf16*>(args.w.data),
                                                  {args.w.shape[0], args.w.shape[1]});
  const auto clusters = static_cast<unsigned>(std::min<std::int64_t>(
      std::int64_t{job.row_tiles} * job.out_tiles, ctx.gpu()->info().multiprocessors / kBlocks));
  allow_shared(reinterpret_cast<const void*>(linear_tiles<kAdds>), kSharedBytes,
               "linear's shared memory");
  launch_dependent("linear: tiles", linear_tiles<kAdds>,
                   {clusters * kBlocks, kThreads, kSharedBytes, kBlocks}, ctx,
                   tensor_map(args.x, kTileRows), tensor_map(w, kHalf), narrow, wide, job);
}

}  // namespace

bool linear_tiles_takes(const FusedLinearArgs& args, const Context& ctx) {
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const std::int64_t k = args.x.shape[1];
  return takes_outputs(args) && args.path == LinearPath::kGemm &&
         ctx.gpu()->info().compute_capability == 90 && args.compute == Compute::kBf16 &&
         args.x.is_bf16() && args.w.dtype == DType::kBf16 && args.norm_weight == nullptr && k > 0 &&
         k % 8 == 0 && std::max({args.x.shape[0], args.w.shape[0], k}) <= kMost &&
         tensor_map_takes(args.x) && reinterpret_cast<std::uintptr_t>(args.w.data) % 16 == 0;
}

void linear_tiles_cuda(const FusedLinearArgs& args, Context& ctx) {
  TilesJob job{};
  job.rows = static_cast<int>(args.x.shape[0]);
  job.outs = static_cast<int>(args.y.shape[1]);
  job.k = static_cast<int>(args.x.shape[1]);
  job.gate_rows = args.swiglu ? job.outs : 0;
  job.wide_from = job.outs;
  job.scales = row_scales(args);
  job.residual = residual_job(args);
  if (args.rest.data != nullptr) job.outs += static_cast<int>(args.rest.shape[1]);
  job.row_tiles = ceil_div(job.rows, kTileRows * kBlocks);
  job.out_tiles = ceil_div(job.outs, job.tile_outs());
  if (args.half_norm.weight != nullptr) {
    const CUtensorMap residual = tensor_map(args.y, kTileRows);
    return launch<true>(args, job, residual, residual, ctx);
  }
  const CUtensorMap y = tensor_map(args.y, kWarpRows);
  const CUtensorMap wide = args.rest.data != nullptr ? tensor_map(args.rest, kWarpRows) : y;
  launch<false>(args, job, y, wide, ctx);
}

}  // namespace mamba3
