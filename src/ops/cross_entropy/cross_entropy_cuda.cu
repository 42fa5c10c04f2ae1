// Slice by slice: the head's product, the losses of its rows, which leave the logits' gradient in
// their place, and the products of the way back. Rows that take no part go through with an x of
// zeros: how many there are is known on the GPU only.
#include <cuda_bf16.h>

#include <algorithm>

#include "core/arena.h"
#include "device/dependent_launch.cuh"
#include "device/kernel_helpers.cuh"
#include "device/row_teams.cuh"
#include "ops/cross_entropy/softmax_loss_cuda.h"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"
#include "ops/linear/cublas_product.h"
#include "ops/linear/split_bf16_cuda.h"

namespace mamba3 {
namespace {

constexpr int kThreads = 256;
constexpr int kSumThreads = 1024;

// Logits that exist together. Every slice reads and writes all of grad_w, so that it takes many
// rows to pay for it.
constexpr std::int64_t kSliceBytes = std::int64_t{512} << 20;
constexpr std::int64_t kFewestRows = 512;
constexpr std::int64_t kTileRows = 128;  // of a product

std::int64_t divide_up(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

std::int64_t logit_stride(const CrossEntropyArgs& args) {
  return padded_bf16_stride(args.w.shape[0]);
}

// Equal slices of whole tiles.
std::int64_t slice_rows(const CrossEntropyArgs& args) {
  const std::int64_t rows = std::ssize(args.targets);
  const std::int64_t row_bytes = std::max<std::int64_t>(1, logit_stride(args)) * sizeof(float);
  const std::int64_t most = std::max(kSliceBytes / row_bytes, kFewestRows);
  const std::int64_t even = divide_up(rows, divide_up(rows, most));
  return std::min(rows, divide_up(even, kTileRows) * kTileRows);
}

bool wants_gradient(const CrossEntropyArgs& args) {
  return args.grad_x.data != nullptr || args.grad_w.data != nullptr;
}

// fp32 weights are rounded for all slices at once.
bool rounds_weights(const CrossEntropyArgs& args) {
  return args.compute == Compute::kBf16 && args.w.dtype == DType::kF32;
}

struct TakeJob {
  const void* x;
  std::int64_t x_stride;
  const std::int32_t* targets;
  void* out;  // [rows, d]
  std::int64_t rows;
  std::int64_t d;
};

// x, or zeros where it takes no part.
template <int V, class X, class Y>
__global__ void __launch_bounds__(kThreads) take_rows(const TakeJob job, const RowTeams teams) {
  start_successor();
  wait_for_predecessor();
  const std::int64_t row = teams.row();
  if (row >= job.rows) return;
  const bool ignored = job.targets[row] == kIgnoredTarget;
  const X* const from = static_cast<const X*>(job.x) + row * job.x_stride;
  Y* const to = static_cast<Y*>(job.out) + row * job.d;
  for (std::int64_t i = std::int64_t{teams.place()} * V; i < job.d; i += teams.threads * V) {
    float values[V] = {};
    if (!ignored) load_vector<V>(from + i, values);
    store_vector<V>(values, to + i);
  }
}

template <class X, class Y>
void launch_take(const TakeJob& job, Context& ctx) {
  const bool vectors = job.d % 4 == 0 && takes_vectors(static_cast<const X*>(job.x), job.x_stride);
  const RowTeams teams(job.d, vectors ? 4 : 1, kThreads);
  launch_dependent("cross_entropy: taking rows", vectors ? take_rows<4, X, Y> : take_rows<1, X, Y>,
                   {grid_blocks(job.rows, teams.rows(kThreads)), kThreads}, ctx, job, teams);
}

// In the type that products multiply.
Matrix take(const ConstMatrix& x, const std::int32_t* targets, bool bf16, void* to, Context& ctx) {
  const TakeJob job{x.data, x.stride[0], targets, to, x.shape[0], x.shape[1]};
  if (!bf16) {
    launch_take<float, float>(job, ctx);
    return TensorView<float, 2>(static_cast<float*>(to), x.shape);
  }
  if (x.is_bf16()) {
    launch_take<__nv_bfloat16, __nv_bfloat16>(job, ctx);
  } else {
    launch_take<float, __nv_bfloat16>(job, ctx);
  }
  return TensorView<Bf16, 2>(static_cast<Bf16*>(to), x.shape);
}

__device__ double block_sum(double value) {
  __shared__ double warps[kSumThreads / kWarpLanes];
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  value = warp_sum(value);
  if (lane == 0) warps[threadIdx.x / kWarpLanes] = value;
  __syncthreads();
  value = warp_sum(warps[lane]);
  __syncthreads();
  return value;
}

// One block; the order of the sums depends on the number of rows alone.
__global__ void __launch_bounds__(kSumThreads)
    sum_losses(const RowLoss* rows, std::int64_t count, CrossEntropySums* sums) {
  start_successor();
  wait_for_predecessor();
  double loss = 0, squared_z = 0, counted = 0, correct = 0;
  for (std::int64_t i = threadIdx.x; i < count; i += kSumThreads) {
    const RowLoss row = rows[i];
    loss += row.loss;
    squared_z += row.z * row.z;
    counted += row.counted;
    correct += row.correct;
  }
  loss = block_sum(loss);
  squared_z = block_sum(squared_z);
  counted = block_sum(counted);
  correct = block_sum(correct);
  if (threadIdx.x > 0) return;
  *sums = {loss, squared_z, static_cast<std::int64_t>(counted), static_cast<std::int64_t>(correct)};
}

// Memory of one slice after the other.
struct SliceMemory {
  TensorRef w;        // in the type that products multiply
  void* x = nullptr;  // [rows, d], of the same type
  float* logits = nullptr;
  RowLoss* losses = nullptr;  // [t], of all
};

// logits = x w^T. In bf16 not by linear, which promises more of its bits than is needed here, and
// so leaves the library less choice.
void head(const Matrix& x, const TensorRef& w, const Matrix& logits, Context& ctx) {
  if (!x.is_bf16()) return linear({x, w, logits, Compute::kF32, LinearPath::kGemm}, ctx);
  if (logits.shape[1] == 0) return;
  ArenaScope scope(ctx.workspace());
  CublasProduct product;
  product.x = x.data;
  product.w = w.data;
  product.x_stride = product.w_stride = product.k = x.shape[1];
  product.y = logits;
  product.sums = CublasSums::kFp32;
  cublas_product(product, scope.allocate<std::byte>(kCublasWorkspaceBytes), ctx);
}

void run_slice(const CrossEntropyArgs& args, std::int64_t begin, std::int64_t end,
               const SliceMemory& memory, Context& ctx) {
  const bool bf16 = args.compute == Compute::kBf16;
  const std::int32_t* const targets = args.targets.data() + begin;
  const Matrix x = take(args.x.slice(begin, end), targets, bf16, memory.x, ctx);
  SoftmaxLossRowsArgs rows;
  rows.logits = memory.logits;
  rows.rows = end - begin;
  rows.v = args.w.shape[0];
  rows.stride = logit_stride(args);
  rows.targets = targets;
  rows.z_weight = args.z_weight;
  rows.grad_scale = args.grad_scale;
  if (wants_gradient(args)) rows.gradient = bf16 ? LogitGradient::kBf16 : LogitGradient::kF32;
  rows.losses = memory.losses + begin;
  if (args.losses != nullptr) rows.plain_losses = args.losses + begin;
  const TensorView<float, 2> logits(rows.logits, {rows.rows, rows.v}, {rows.stride, 1});
  head(x, memory.w, logits, ctx);
  softmax_loss_rows_cuda(rows, ctx);
  if (!wants_gradient(args)) return;
  LinearBackwardArgs backward;
  backward.x = x;
  backward.w = memory.w;
  backward.grad_y = logit_gradient(rows);
  if (args.grad_x.data != nullptr) backward.grad_x = args.grad_x.slice(begin, end);
  backward.grad_w = args.grad_w;
  backward.compute = args.compute;
  backward.accumulate_w = args.accumulate_w || begin > 0;
  linear_backward(backward, ctx);
}

SliceMemory take_memory(const CrossEntropyArgs& args, ArenaScope& scope, Context& ctx) {
  const std::int64_t rows = slice_rows(args), d = args.x.shape[1];
  const bool bf16 = args.compute == Compute::kBf16;
  SliceMemory out;
  out.w = args.w;
  if (rounds_weights(args)) {
    const Bf16Parts rounded = split_bf16(matrix_of(args.w), d, 1, scope, ctx);
    out.w.dtype = DType::kBf16;
    out.w.data = reinterpret_cast<const std::byte*>(rounded.data);
  }
  out.x = scope.allocate<std::byte>(rows * d * (bf16 ? 2 : 4));
  out.logits = scope.allocate<float>(rows * logit_stride(args));
  out.losses = scope.allocate<RowLoss>(std::ssize(args.targets));
  return out;
}

// What the products of a slice take, one after the other.
std::size_t product_bytes(const CrossEntropyArgs& args, const Context& ctx) {
  const std::int64_t rows = slice_rows(args), d = args.x.shape[1];
  const bool bf16 = args.compute == Compute::kBf16;
  const std::size_t forward = kCublasWorkspaceBytes + Arena::kAlignBytes +
                              split_bf16_bytes(rows, padded_bf16_stride(d), kExactParts);
  if (!wants_gradient(args)) return forward;
  LinearBackwardArgs backward;
  backward.w = args.w;
  if (bf16) backward.w.dtype = DType::kBf16;
  backward.x.shape = {rows, d};
  backward.x.stride = {d, 1};
  backward.grad_y.shape = {rows, args.w.shape[0]};
  backward.grad_y.stride = {2 * logit_stride(args), 1};
  if (bf16) backward.x.dtype = backward.grad_y.dtype = DType::kBf16;
  backward.grad_x = args.grad_x;
  backward.grad_x.shape[0] = rows;
  backward.grad_w = args.grad_w;
  backward.compute = args.compute;
  return std::max(forward, linear_backward_workspace_bytes(backward, ctx));
}

}  // namespace

std::size_t cross_entropy_workspace_bytes_cuda(const CrossEntropyArgs& args, const Context& ctx) {
  if (args.targets.empty()) return 0;
  const auto rows = static_cast<std::size_t>(slice_rows(args));
  const auto d = static_cast<std::size_t>(args.x.shape[1]);
  std::size_t bytes = product_bytes(args, ctx);
  if (rounds_weights(args)) bytes += split_bf16_bytes(args.w.shape[0], args.w.shape[1], 1);
  bytes += rows * d * (args.compute == Compute::kBf16 ? sizeof(Bf16) : sizeof(float));
  bytes += rows * static_cast<std::size_t>(logit_stride(args)) * sizeof(float);
  bytes += args.targets.size() * sizeof(RowLoss);
  return bytes + 3 * Arena::kAlignBytes;
}

void cross_entropy_cuda(const CrossEntropyArgs& args, Context& ctx) {
  const std::int64_t count = std::ssize(args.targets);
  if (count == 0) {
    ctx.gpu()->zero(args.sums, sizeof(*args.sums));
    LinearBackwardArgs nothing;
    nothing.x = args.x;
    nothing.w = args.w;
    nothing.grad_y.shape = {0, args.w.shape[0]};
    nothing.grad_y.stride = {args.w.shape[0], 1};
    nothing.grad_w = args.grad_w;
    nothing.compute = args.compute;
    nothing.accumulate_w = args.accumulate_w;
    return linear_backward(nothing, ctx);
  }
  ArenaScope scope(ctx.workspace());
  const SliceMemory memory = take_memory(args, scope, ctx);
  const std::int64_t rows = slice_rows(args);
  for (std::int64_t begin = 0; begin < count; begin += rows) {
    run_slice(args, begin, std::min(count, begin + rows), memory, ctx);
  }
  launch_dependent("cross_entropy: sums", sum_losses, {1, kSumThreads}, ctx, memory.losses, count,
                   args.sums);
}

}  // namespace mamba3
