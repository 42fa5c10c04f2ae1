// Products of many rows with SwiGLU behind them, with outputs of both types, or that begin the norm
// behind them: blocks that stay on their multiprocessor walk over tiles of 128 rows of x by 256
// rows of weights. One warp copies x and weights into a ring in shared memory; two warpgroups
// multiply, 64 rows of x each; two more warps send on what they have summed. Two blocks of a
// cluster share the weights: each copies half of them for both.
//
// What is between the last product of a tile and the first of the next leaves the tensor cores
// idle, so it is kept short: outputs in bf16 are only packed there, and the residual that a tile is
// added to comes through the ring, so that it has arrived.
//
// A sum runs along k in one order whatever the tile, so a row's bits do not depend on other rows.
#include <cuda_bf16.h>

#include <algorithm>

#include "device/cluster.cuh"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "device/ring_position.cuh"
#include "device/tensor_copy.cuh"
#include "device/wgmma_widths.cuh"
#include "ops/launch.cuh"
#include "ops/linear/linear_tiles_cuda.h"
#include "ops/linear/tile_outputs_cuda.cuh"
#include "ops/tensor_map.h"

namespace mamba3 {
namespace {

constexpr int kHalf = 128;  // rows of weights that one block of the cluster copies
constexpr int kStages = 4;
// Along k. With most of them a box goes out of what was packed of the tile before; the others
// prepare the tile's end.
constexpr int kFirstStages = kPackedBoxes + 2;
constexpr unsigned kBlocks = 2;  // of a cluster
constexpr int kConsumers = 2;    // warpgroups that multiply
constexpr int kGroupThreads = 128;
constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kConsumerWarps = kConsumers * kGroupWarps;

struct TilesJob {
  int rows, outs, k;
  int gate_rows;  // from a row of weights to that of its gate; 0: no SwiGLU
  int wide_from;  // outputs from here on are fp32
  RowScales scales;
  ResidualJob residual;      // of products that begin a norm
  int row_tiles, out_tiles;  // of a cluster
  int band;                  // row tiles that clusters walk through together
  __host__ __device__ int tile_outs() const { return gate_rows > 0 ? kHalf : kTileWeights; }
};

struct OutputMaps {
  CUtensorMap narrow, wide;  // by warpgroups
  CUtensorMap residual;      // `wide` again, by blocks
};

#if __CUDA_ARCH__ >= 900

constexpr int kDepth = kTileColumns;  // along k, in a stage
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
// The residual that a tile is added to is fetched to the L2 while the tile is multiplied: so many
// stages before its end the first of the boxes of 32 columns, another one at every second stage.
constexpr int kResidualStages = 24;
constexpr int kResidualBoxes = kTileWeights / kWideColumns;
// It comes in stages of two boxes.
constexpr int kResidualColumns = 2 * kWideColumns;
static_assert(kResidualColumns == kNarrowColumns);

struct alignas(1024) Stage {
  __nv_bfloat16 x[kTileRows * kDepth];
  __nv_bfloat16 w[kTileWeights * kDepth];
};
static_assert(sizeof(Stage::w) == 2 * kResidualBoxBytes);

struct Shared {
  Stage stages[kStages];
  std::byte boxes[kConsumers][2][kBoxBytes];
  Barrier full[kStages], empty[kStages];
  OutboxBarriers outboxes[kConsumers];

  __device__ Outbox outbox(int group) { return {boxes[group][0], outboxes[group]}; }
};

// The tiles of this block in turn. Clusters walk through a band of row tiles, all of it for some
// weights before the next weights.
struct Walk {
  int index = static_cast<int>(blockIdx.x / kBlocks);
  int row, out;  // where the tile begins
  bool exists;   // false when there are no more

  __device__ explicit Walk(const TilesJob& job) { find(job); }
  __device__ void next(const TilesJob& job) {
    index += static_cast<int>(gridDim.x / kBlocks);
    find(job);
  }

 private:
  __device__ void find(const TilesJob& job) {
    exists = index < job.row_tiles * job.out_tiles;
    if (!exists) return;
    const int band = index / (job.band * job.out_tiles), first = band * job.band;
    const int height = min(job.band, job.row_tiles - first);
    const int within = index - first * job.out_tiles;
    row =
        ((first + within % height) * static_cast<int>(kBlocks) + static_cast<int>(cluster_rank())) *
        kTileRows;
    out = within / height * job.tile_outs();
  }
};

__device__ __forceinline__ void prefetch_residual(const CUtensorMap& residual, int row, int out,
                                                  int stages_left) {
  const int box = (kResidualStages - stages_left) / 2;
  if (stages_left > kResidualStages || stages_left % 2 != 0 || box >= kResidualBoxes) return;
  prefetch_box(residual, out + box * kWideColumns, row);
}

// The tile of the residual, as further stages of which only the place for weights is used.
__device__ __forceinline__ void load_residual(const CUtensorMap& residual, int row, int out,
                                              Shared& shared, RingPosition<kStages>& at) {
  for (int c = 0; c < kTileWeights; c += kResidualColumns, at.next()) {
    barrier_wait(&shared.empty[at.stage], at.parity ^ 1);
    if (!elect_lane()) continue;
    std::byte* const boxes = reinterpret_cast<std::byte*>(shared.stages[at.stage].w);
    Barrier* const full = &shared.full[at.stage];
    barrier_arrive_expecting(full, 2 * kResidualBoxBytes);
    load_box(boxes, residual, out + c, row, full);
    load_box(boxes + kResidualBoxBytes, residual, out + c + kWideColumns, row, full);
  }
}

// One warp: what all tiles of this block read, in the order in which they read it.
template <bool kAdds>
__device__ void load_stages(const TilesJob& job, const CUtensorMap& x, const CUtensorMap& w,
                            const CUtensorMap& residual, Shared& shared) {
  const int rank = static_cast<int>(cluster_rank());
  RingPosition<kStages> at;
  for (Walk tile(job); tile.exists; tile.next(job)) {
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
    if (kAdds) load_residual(residual, tile.row, tile.out, shared, at);
  }
}

// The blocks of the cluster may fill the stage again, as far as this warp is concerned.
__device__ __forceinline__ void release(Shared& shared, int stage) {
  const unsigned lane = threadIdx.x % kWarpLanes;
  if (lane < kBlocks) barrier_arrive_at(&shared.empty[stage], lane);
}

// 64 rows of x by a tile's weights, along all of k. While the products of the first stages are
// under way it calls `meanwhile(stage)`.
template <class Meanwhile>
__device__ __forceinline__ void multiply(const TilesJob& job, Shared& shared, int group,
                                         RingPosition<kStages>& at, float (&sums)[kTileWeights / 2],
                                         const Meanwhile& meanwhile) {
  const std::uint64_t x0 =
      wgmma_operand(shared_address(shared.stages[0].x + group * kGroupRows * kDepth));
  const std::uint64_t w0 = wgmma_operand(shared_address(shared.stages[0].w));
  int before = 0;
  const auto multiply_stage = [&](int k, const auto& also) {
    barrier_wait(&shared.full[at.stage], at.parity);
    const std::uint32_t offset = static_cast<std::uint32_t>(at.stage) * sizeof(Stage);
    const std::uint64_t x = wgmma_further(x0, offset), w = wgmma_further(w0, offset);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      wgmma_k16(sums, wgmma_further(x, step * 32), wgmma_further(w, step * 32), k > 0 || step > 0);
    }
    wgmma_commit();
    also();
    wgmma_wait<1>();
    if (k > 0) release(shared, before);
    before = at.stage;
    at.next();
  };
#pragma unroll
  for (int i = 0; i < kFirstStages; ++i) {
    if (i * kDepth < job.k) {
      multiply_stage(i * kDepth, [&] { meanwhile(i); });
    } else {
      meanwhile(i);
    }
  }
  for (int k = kFirstStages * kDepth; k < job.k; k += kDepth) multiply_stage(k, [] {});
  wgmma_wait<0>();
  wgmma_hold(sums);
  release(shared, before);
}

// The sums join the residual, whose boxes come behind the tile's stages, and its scaled numbers go
// to the next product. Who sends a box on, from where it came in, releases its stage.
__device__ __forceinline__ void add_tile(const ResidualJob& job, Shared& shared,
                                         RingPosition<kStages>& at, int row, int out,
                                         OutboxWriter& outbox,
                                         const float (&sums)[kTileWeights / 2]) {
  ResidualRows residual(job, outbox.lane, out);
#pragma unroll
  for (int c = 0; c < kTileWeights; c += kResidualColumns, at.next()) {
    residual.load_weights(c);
    const std::uint32_t scaled = outbox.open();
    barrier_wait(&shared.full[at.stage], at.parity);
    const std::uint32_t boxes =
        shared_address(shared.stages[at.stage].w) + row % kTileRows * kTileRowBytes;
    std::uint32_t words[kBoxWords];
    residual.add(sums, c, boxes, words);
    put_narrow(scaled, outbox.lane, words);
    outbox.close();
  }
  residual.put_squares(row, out);
}

// Outputs in bf16 are only packed: they go out with the next tile.
__device__ __forceinline__ void finish_tile(const TilesJob& job, const ScaledSums& sums, int out,
                                            PackedTile& packed, OutboxWriter& outbox) {
  if (job.gate_rows > 0) {
    packed.pack_gated(sums);
  } else if (out < job.wide_from) {
    packed.pack(sums);
  } else {
    put_wide(sums, outbox);
    packed.forget();
  }
}

template <bool kAdds>
__device__ void multiply_tiles(const TilesJob& job, Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes - 4, group = warp / kGroupWarps;
  OutboxWriter outbox(shared.outbox(group), warp % kGroupWarps);
  PackedTile packed;
  RingPosition<kStages> at;
  float sums[kTileWeights / 2];
  for (Walk tile(job); tile.exists;) {
    const int row = tile.row + warp * kWarpRows, out = tile.out;
    ScalesOfRows asked;
    float2 scales;
    multiply(job, shared, group, at, sums, [&](int stage) {
      if (stage < kPackedBoxes) return packed.put(stage, outbox);
      if (stage == kPackedBoxes) return asked.ask(job.scales, row + outbox.lane / 4);
      scales = asked.get(job.scales);
      tile.next(job);
    });
    if constexpr (kAdds) {
      add_tile(job.residual, shared, at, row, out, outbox, sums);
    } else {
      finish_tile(job, {sums, scales}, out, packed, outbox);
    }
  }
#pragma unroll
  for (int box = 0; box < kPackedBoxes; ++box) packed.put(box, outbox);
}

// A tile of the residual goes out from the ring, and scaled from the outbox.
__device__ __forceinline__ void send_sums(const OutputMaps& maps, Shared& shared, int group,
                                          RingPosition<kStages>& at, RingPosition<2>& box_at,
                                          int row, int out) {
  const unsigned lane = threadIdx.x % kWarpLanes;
  for (int c = 0; c < kTileWeights; c += kResidualColumns, at.next()) {
    send_box(shared.outbox(group), box_at, [&](const std::byte* box) {
      const std::byte* const boxes =
          reinterpret_cast<std::byte*>(shared.stages[at.stage].w) + group * kBoxBytes;
      store_box(maps.wide, out + c, row, boxes);
      store_box(maps.wide, out + c + kWideColumns, row, boxes + kResidualBoxBytes);
      store_box(maps.narrow, out + c, row, box);
    });
    // The stage is free again, as far as all warps of the group are concerned.
    if (lane < kGroupWarps * kBlocks) {
      barrier_arrive_at(&shared.empty[at.stage], lane % kBlocks);
    }
  }
}

// One warp for each group: its outputs, in the order in which it puts them into its outbox.
template <bool kAdds>
__device__ void send_outputs(const TilesJob& job, const OutputMaps& maps, Shared& shared,
                             int group) {
  const Outbox outbox = shared.outbox(group);
  RingPosition<kStages> at;
  RingPosition<2> box_at;
  for (Walk tile(job); tile.exists; tile.next(job)) {
    const int row = tile.row + group * kGroupRows;
    if (kAdds) {
      at.advance((job.k + kDepth - 1) / kDepth);
      send_sums(maps, shared, group, at, box_at, row, tile.out);
      continue;
    }
    const bool is_wide = tile.out >= job.wide_from;
    const CUtensorMap& y = is_wide ? maps.wide : maps.narrow;
    const int first = is_wide ? tile.out - job.wide_from : tile.out;
    const int columns = is_wide ? kWideColumns : kNarrowColumns;
    for (int c = 0; c < job.tile_outs(); c += columns) {
      send_box(outbox, box_at, [&](const std::byte* box) { store_box(y, first + c, row, box); });
    }
  }
}

#endif

// kAdds: onto the residual, which is `wide`; what the next product gets of it is `narrow`.
template <bool kAdds>
__global__ void __launch_bounds__(kThreads, 1)
    linear_tiles(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                 const __grid_constant__ OutputMaps maps, const TilesJob job) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ std::byte memory[];
  Shared& shared =
      *reinterpret_cast<Shared*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], kBlocks * kConsumerWarps);
    }
    for (OutboxBarriers& outbox : shared.outboxes) outbox.init();
    barrier_init_done();
  }
  cluster_sync_relaxed();
  wait_for_predecessor();
  if (threadIdx.x < kGroupThreads) {
    wgmma_give_registers<kProducerRegisters>();
    const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
    if (warp == 0) {
      load_stages<kAdds>(job, x, w, maps.residual, shared);
      start_successor();
    } else if (warp <= kConsumers) {
      send_outputs<kAdds>(job, maps, shared, warp - 1);
    }
  } else {
    wgmma_take_registers<kConsumerRegisters>();
    multiply_tiles<kAdds>(job, shared);
  }
  // A block's memory stays until what its neighbour releases there has arrived.
  cluster_sync();
#endif
}

constexpr std::size_t kSharedBytes = std::size_t{kStages} * (kTileRows + kTileWeights) * 128 +
                                     kConsumers * 2 * kBoxBytes + 1024 + 1024;

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

int clusters_at_once(const Context& ctx) {
  return ctx.gpu()->info().multiprocessors / static_cast<int>(kBlocks);
}

// The tiles of clusters that work at one time share what they read by way of the L2: as many row
// tiles and rows of weights together as make the fewest.
int band_rows(int clusters, int out_tiles) {
  constexpr int kMost = 16;  // so much of x stays in the L2
  int best = 1, least = clusters + 1;
  for (int rows = 2; rows <= kMost; ++rows) {
    const int outs = clusters / rows + (clusters % rows == 0 ? 0 : 2);
    const int tiles = rows + std::min(outs, out_tiles);
    if (tiles <= least) best = rows, least = tiles;
  }
  return best;
}

template <bool kAdds>
void launch(const FusedLinearArgs& args, const TilesJob& job, const OutputMaps& maps,
            Context& ctx) {
  const ConstMatrix w = TensorView<const Bf16, 2>(reinterpret_cast<const Bf16*>(args.w.data),
                                                  {args.w.shape[0], args.w.shape[1]});
  const auto clusters = static_cast<unsigned>(
      std::min<std::int64_t>(std::int64_t{job.row_tiles} * job.out_tiles, clusters_at_once(ctx)));
  allow_shared(reinterpret_cast<const void*>(linear_tiles<kAdds>), kSharedBytes,
               "linear's shared memory");
  launch_dependent("linear: tiles", linear_tiles<kAdds>,
                   {clusters * kBlocks, kThreads, kSharedBytes, kBlocks}, ctx,
                   tensor_map(args.x, kTileRows), tensor_map(w, kHalf), maps, job);
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
  job.band = band_rows(clusters_at_once(ctx), job.out_tiles);
  const CUtensorMap y = tensor_map(args.y, kGroupRows);
  if (args.half_norm.weight != nullptr) {
    const CUtensorMap scaled = tensor_map(args.half_norm.scaled, kGroupRows);
    return launch<true>(args, job, {scaled, y, tensor_map(args.y, kTileRows)}, ctx);
  }
  const CUtensorMap wide = args.rest.data != nullptr ? tensor_map(args.rest, kGroupRows) : y;
  launch<false>(args, job, {y, wide, y}, ctx);
}

}  // namespace mamba3
