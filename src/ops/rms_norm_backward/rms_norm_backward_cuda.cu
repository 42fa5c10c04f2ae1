// A team of threads takes a row: all that the row reads is fetched at once and stays in registers
// until the two means are known. What rows give to the weight is summed in shared memory, team by
// team, then over the blocks by a second kernel. Who sums what depends on the shape alone.
#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "device/bulk_copy.cuh"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpLanes;
// Vectors of a row that a thread keeps at most; those of wider rows are read twice.
constexpr int kMostHeld = 4;
constexpr int kBlocksPerMultiprocessor = 2;
// As many as an H100 has room for at once.
constexpr std::int64_t kMostBlocks = 132 * kBlocksPerMultiprocessor;
// Of shared memory: what a block has without asking, and what every card gives when asked.
constexpr std::size_t kPlainBytes = std::size_t{48} << 10;
constexpr std::size_t kMostBytes = std::size_t{96} << 10;

struct RmsNormBackwardJob {
  const float* residual;
  std::int64_t residual_stride;
  const float* weight;
  double eps;
  double over_d;  // 1 / d
  const void* grad_y;
  std::int64_t grad_y_stride;
  float* grad_residual;
  std::int64_t grad_residual_stride;
  __nv_bfloat16* rounded;  // or null
  std::int64_t rounded_stride;
  float* weight_sums;  // [blocks, d] or null
  std::int64_t rows;
  int d;
  int team;  // threads
};

// One row's pointers. G: the type of grad_y.
template <class G>
struct Row {
  const float* residual;
  const G* grad_y;
  float* grad_residual;
  __nv_bfloat16* rounded;
  float* weight_sums;  // the team's, in shared memory

  __device__ __forceinline__ Row(const RmsNormBackwardJob& job, std::int64_t at, float* sums)
      : residual(job.residual + at * job.residual_stride),
        grad_y(static_cast<const G*>(job.grad_y) + at * job.grad_y_stride),
        grad_residual(job.grad_residual + at * job.grad_residual_stride),
        rounded(job.rounded == nullptr ? nullptr : job.rounded + at * job.rounded_stride),
        weight_sums(sums) {}
};

template <int V>
struct Part {
  float residual[V] = {};
  float grad_y[V] = {};
  float grad_residual[V] = {};
};

struct Sums {
  double squares = 0;   // of residual
  double products = 0;  // of residual, weight and grad_y
};

struct RowFactors {
  float rstd;  // 1 / rms
  float mean;  // of grad_y weight residual / rms
};

template <int V, class G>
__device__ __forceinline__ void load(const Row<G>& row, int i, Part<V>& part) {
  load_vector<V>(row.residual + i, part.residual);
  load_vector<V>(row.grad_y + i, part.grad_y);
  load_vector<V>(row.grad_residual + i, part.grad_residual);
}

// All that is read of a row comes near while the team works on the one before, where its code has
// fewer loads on the way at once. d: a multiple of 8.
template <class G>
__device__ __forceinline__ void prefetch(const Row<G>& row, int d) {
  prefetch_l2(row.residual, d * static_cast<int>(sizeof(float)));
  prefetch_l2(row.grad_y, d * static_cast<int>(sizeof(G)));
  prefetch_l2(row.grad_residual, d * static_cast<int>(sizeof(float)));
}

template <int V>
__device__ __forceinline__ void add_up(const Part<V>& part, const float (&weight)[V], Sums& sums) {
  for (int v = 0; v < V; ++v) {
    const double r = part.residual[v];
    sums.squares = fma(r, r, sums.squares);
    sums.products = fma(double{part.grad_y[v] * weight[v]}, r, sums.products);
  }
}

template <int V, class G>
__device__ __forceinline__ void finish(const Row<G>& row, int i, const RowFactors& by,
                                       const Part<V>& part, const float (&weight)[V]) {
  float normed[V];
  float out[V];
  for (int v = 0; v < V; ++v) {
    normed[v] = part.residual[v] * by.rstd;
    const float inner = fmaf(-normed[v], by.mean, part.grad_y[v] * weight[v]);
    out[v] = fmaf(inner, by.rstd, part.grad_residual[v]);
  }
  store_vector<V>(out, row.grad_residual + i);
  if (row.rounded != nullptr) store_vector<V>(out, row.rounded + i);
  if (row.weight_sums == nullptr) return;
  float sum[V];
  load_vector<V>(row.weight_sums + i, sum);
  for (int v = 0; v < V; ++v) sum[v] = fmaf(part.grad_y[v], normed[v], sum[v]);
  store_vector<V>(sum, row.weight_sums + i);
}

// Every thread of the team gets the sums. Two calls one after the other take different `slots`, so
// that nobody overwrites what another one still reads.
__device__ __forceinline__ Sums team_sum(Sums sums, int team, Sums (&slots)[kWarps]) {
  sums.squares = warp_sum(sums.squares);
  sums.products = warp_sum(sums.products);
  if (team == kWarpLanes) return sums;
  const int warp = static_cast<int>(threadIdx.x) / kWarpLanes;
  const int number = static_cast<int>(threadIdx.x) / team;
  if (threadIdx.x % kWarpLanes == 0) slots[warp] = sums;
  sync_threads(1 + number, team);
  const int warps = team / kWarpLanes;
  Sums out;
#pragma unroll 2
  for (int i = 0; i < warps; ++i) {
    out.squares += slots[number * warps + i].squares;
    out.products += slots[number * warps + i].products;
  }
  return out;
}

// A thread's vectors of a row are `first`, `first` + `step` and so on: kHeld of them, which it
// keeps, and whatever follows. kWhole: nothing follows, and no row is shorter.
template <int V, int kHeld, bool kWhole>
struct Place {
  int first, step, d;
  float weight[kHeld][V] = {};  // of the vectors that are kept

  __device__ __forceinline__ Place(const RmsNormBackwardJob& job)
      : first(static_cast<int>(threadIdx.x) % job.team * V), step(job.team * V), d(job.d) {
#pragma unroll
    for (int c = 0; c < kHeld; ++c) {
      if (has(c)) load_vector<V>(job.weight + at(c), weight[c]);
    }
  }
  __device__ __forceinline__ int at(int c) const {
    return first + c * step;
  }
  __device__ __forceinline__ bool has(int c) const {
    return kWhole || at(c) < d;
  }
  __device__ __forceinline__ int end_of_held() const {
    return kWhole ? d : at(kHeld);
  }
};

template <int V, int kHeld, bool kWhole, class G>
__device__ __forceinline__ void take_row(const Row<G>& row, const RmsNormBackwardJob& job,
                                         const Place<V, kHeld, kWhole>& place,
                                         Sums (&slots)[kWarps]) {
  Part<V> held[kHeld];
  Part<V> part;
  float weight[V];
  Sums sums;
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    if (place.has(c)) load<V>(row, place.at(c), held[c]);
  }
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    if (place.has(c)) add_up<V>(held[c], place.weight[c], sums);
  }
  for (int i = place.end_of_held(); i < job.d; i += place.step) {
    load<V>(row, i, part);
    load_vector<V>(job.weight + i, weight);
    add_up<V>(part, weight, sums);
  }
  sums = team_sum(sums, job.team, slots);
  const double rstd = rsqrt(sums.squares * job.over_d + job.eps);
  const RowFactors by{static_cast<float>(rstd),
                      static_cast<float>(sums.products * rstd * job.over_d)};
#pragma unroll
  for (int c = 0; c < kHeld; ++c) {
    if (place.has(c)) finish<V>(row, place.at(c), by, held[c], place.weight[c]);
  }
  for (int i = place.end_of_held(); i < job.d; i += place.step) {
    load<V>(row, i, part);
    load_vector<V>(job.weight + i, weight);
    finish<V>(row, i, by, part, weight);
  }
}

template <int V, int kHeld, bool kWhole, class G>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    rms_norm_backward_kernel(const RmsNormBackwardJob job) {
  extern __shared__ float4 shared[];  // [teams, d] floats
  __shared__ Sums slots[2][kWarps];
  start_successor();
  wait_for_predecessor();
  const int teams = kThreads / job.team;
  const int number = static_cast<int>(threadIdx.x) / job.team;
  const Place<V, kHeld, kWhole> place(job);
  float* sums = nullptr;
  if (job.weight_sums != nullptr) {
    sums = reinterpret_cast<float*>(shared) + number * job.d;
    for (int i = place.first; i < job.d; i += place.step) store_vector<V>({}, sums + i);
  }
  int turn = 0;
  const std::int64_t stride = std::int64_t{gridDim.x} * teams;
  for (std::int64_t at = std::int64_t{blockIdx.x} * teams + number; at < job.rows; at += stride) {
    if (!kWhole && V > 1 && job.d % 8 == 0 && place.first == 0 && at + stride < job.rows) {
      prefetch(Row<G>(job, at + stride, sums), job.d);
    }
    take_row(Row<G>(job, at, sums), job, place, slots[turn]);
    turn ^= 1;
  }
  if (sums == nullptr) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < job.d; i += kThreads) {
    float sum = 0;
    for (int t = 0; t < teams; ++t) sum += reinterpret_cast<float*>(shared)[t * job.d + i];
    job.weight_sums[std::int64_t{blockIdx.x} * job.d + i] = sum;
  }
}

// grad_weight += the blocks' sums, in double. 32 columns a block: a warp's lanes read a row of
// them, the warps take turns at the rows, and warp i then adds up column i.
__global__ void __launch_bounds__(kWarpLanes* kWarpLanes)
    add_weight_sums(const float* sums, std::int64_t blocks, std::int64_t d, float* grad_weight) {
  __shared__ double partial[kWarpLanes][kWarpLanes + 1];
  start_successor();
  wait_for_predecessor();
  const int lane = threadIdx.x % kWarpLanes;
  const int warp = threadIdx.x / kWarpLanes;
  const std::int64_t begin = std::int64_t{blockIdx.x} * kWarpLanes;
  double sum = 0;
  if (begin + lane < d) {
#pragma unroll 8
    for (std::int64_t row = warp; row < blocks; row += kWarpLanes) {
      sum += sums[row * d + begin + lane];
    }
  }
  partial[warp][lane] = sum;
  __syncthreads();
  const double total = warp_sum(partial[lane][warp]);
  if (lane == 0 && begin + warp < d) {
    grad_weight[begin + warp] = static_cast<float>(grad_weight[begin + warp] + total);
  }
}

// How a shape is shared out.
struct Plan {
  Plan(std::int64_t rows, std::int64_t d, int vector) : team(kWarpLanes) {
    while (team < kThreads && std::int64_t{team} * vector * kMostHeld < d) team *= 2;
    held = static_cast<int>(d / (std::int64_t{team} * vector));
    whole = std::int64_t{team} * vector * held == d && vector == 4 &&
            (held == kMostHeld || held == kMostHeld - 1);
    const int teams = kThreads / team;
    blocks = std::min(kMostBlocks, (rows + teams - 1) / teams);
    shared_bytes = static_cast<std::size_t>(teams * d) * sizeof(float);
  }
  int team;  // threads
  int held;
  bool whole;
  std::int64_t blocks;
  std::size_t shared_bytes;  // of the sums for the weight
};

template <class G>
bool grad_y_takes_vectors(const RmsNormBackwardJob& job) {
  return takes_vectors(static_cast<const G*>(job.grad_y), job.grad_y_stride);
}

template <class G>
auto kernel_for(const Plan& plan, bool vectors) {
  if (!vectors) return rms_norm_backward_kernel<1, kMostHeld, false, G>;
  if (!plan.whole) return rms_norm_backward_kernel<4, kMostHeld - 1, false, G>;
  return plan.held == kMostHeld ? rms_norm_backward_kernel<4, kMostHeld, true, G>
                                : rms_norm_backward_kernel<4, kMostHeld - 1, true, G>;
}

}  // namespace

std::size_t rms_norm_backward_workspace_bytes_cuda(const RmsNormBackwardArgs& args) {
  if (args.grad_weight == nullptr) return 0;
  return static_cast<std::size_t>(kMostBlocks * args.residual.shape[1]) * sizeof(float) +
         Arena::kAlignBytes;
}

void rms_norm_backward_cuda(const RmsNormBackwardArgs& args, Context& ctx) {
  const bool bf16 = args.grad_y.is_bf16();
  RmsNormBackwardJob job{};
  job.residual = args.residual.data;
  job.residual_stride = args.residual.stride[0];
  job.weight = args.weight;
  job.eps = args.eps;
  job.over_d = 1.0 / static_cast<double>(args.residual.shape[1]);
  job.grad_y = args.grad_y.data;
  job.grad_y_stride = args.grad_y.stride[0];
  job.grad_residual = args.grad_residual.data;
  job.grad_residual_stride = args.grad_residual.stride[0];
  job.rounded = static_cast<__nv_bfloat16*>(args.rounded.data);
  job.rounded_stride = args.rounded.stride[0];
  job.rows = args.residual.shape[0];
  job.d = static_cast<int>(args.residual.shape[1]);
  const bool vectors =
      job.d % 4 == 0 && takes_vectors(job.residual, job.residual_stride) &&
      takes_vectors(job.weight, 0) && takes_vectors(job.grad_residual, job.grad_residual_stride) &&
      takes_vectors(job.rounded, job.rounded_stride) &&
      (bf16 ? grad_y_takes_vectors<__nv_bfloat16>(job) : grad_y_takes_vectors<float>(job));
  const Plan plan(job.rows, job.d, vectors ? 4 : 1);
  job.team = plan.team;
  ArenaScope scope(ctx.workspace());
  if (args.grad_weight != nullptr) job.weight_sums = scope.allocate<float>(plan.blocks * job.d);
  const auto kernel =
      bf16 ? kernel_for<__nv_bfloat16>(plan, vectors) : kernel_for<float>(plan, vectors);
  const std::size_t shared_bytes = args.grad_weight == nullptr ? 0 : plan.shared_bytes;
  check_input(shared_bytes <= kMostBytes, "rms_norm_backward: rows of ", job.d,
              " numbers; expected at most ", kMostBytes / sizeof(float), " on a GPU");
  if (shared_bytes > kPlainBytes) {
    allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes, "rms_norm_backward");
  }
  launch_dependent("rms_norm_backward", kernel, {grid_blocks(plan.blocks), kThreads, shared_bytes},
                   ctx, job);
  if (args.grad_weight == nullptr) return;
  launch_dependent("rms_norm_backward: weight", add_weight_sums,
                   {grid_blocks(job.d, kWarpLanes), kWarpLanes * kWarpLanes}, ctx, job.weight_sums,
                   plan.blocks, std::int64_t{job.d}, args.grad_weight);
}

}  // namespace mamba3
