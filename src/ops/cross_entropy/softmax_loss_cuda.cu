// A team of threads a row. Where the team's registers hold the row it is read once. A longer row is
// read twice, from the front for the largest logit and the sum of exponentials, then from the back,
// which a cache may still hold. (A cluster of blocks that holds such a row was no faster: it reads
// less, and waits for its barrier.)
#include "ops/cross_entropy/softmax_loss_cuda.h"

#include <limits>

#include "device/dependent_launch.cuh"
#include "ops/cross_entropy/softmax_row_cuda.cuh"
#include "ops/launch.cuh"

namespace mamba3 {
namespace {

constexpr int kReadVectors = 4;  // of a thread that does not hold its part of a row
constexpr int kMostThreads = 512;

// Threads that a multiprocessor has registers for.
template <class Y>
constexpr int kResident = std::is_same_v<Y, float> ? 768 : 1024;

// N vectors a thread.
template <int kTeam, int N, class Y>
__global__ void __launch_bounds__(kTeam* RowTeam<kTeam>::kRows,
                                  kResident<Y> / (kTeam * RowTeam<kTeam>::kRows))
    hold_rows(const SoftmaxLossRowsArgs args) {
  using T = RowTeam<kTeam>;
  start_successor();
  wait_for_predecessor();
  const std::int64_t at = std::int64_t{blockIdx.x} * T::kRows + threadIdx.x / kTeam;
  if (at >= args.rows) return;
  const LogitRow row(args, at);
  if (row.target == kIgnoredTarget) return row.leave_out<kTeam, Y>();
  const int thread = T::thread();
  LogitVectors<N> held;
  load_vectors<kTeam, N>(row.logits, row.v, thread, held);
  Exponentials all;
  all.add<N>(held);
  const float shift = finite_shift(all.largest);
  all.combine<kTeam>();
  const RowSoftmax softmax = row.finish(all, thread);
  if constexpr (kWanted<Y>) {
    const float scale =
        softmax.sound ? static_cast<float>(softmax.factor * expf(shift - all.largest)) : NAN;
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < kLogitVector; ++j) held[i][j] *= scale;
    }
    Y* const gradient = gradient_row<Y>(row.logits, args.stride);
    store_vectors<kTeam, N>(held, row.v, thread, gradient);
    if (softmax.sound) row.write_target<kTeam>(softmax, gradient);
  }
}

// factor * e^(logit - largest), from the back.
template <int kTeam, class Y>
__device__ __forceinline__ void scale_row(const LogitRow& row, float largest, float factor,
                                          Y* out) {
  constexpr int kPiece = kTeam * kReadVectors;  // vectors
  int first = (row.v - 1) / (kPiece * kLogitVector) * kPiece + RowTeam<kTeam>::thread();
  LogitVectors<kReadVectors> next;
  load_vectors<kTeam, kReadVectors>(row.logits, row.v, first, next);
  for (; first >= 0; first -= kPiece) {
    LogitVectors<kReadVectors> now;
    memcpy(now, next, sizeof(now));
    if (first >= kPiece) {
      load_vectors<kTeam, kReadVectors>(row.logits, row.v, first - kPiece, next);
    }
#pragma unroll
    for (int i = 0; i < kReadVectors; ++i) {
#pragma unroll
      for (int j = 0; j < kLogitVector; ++j) now[i][j] = factor * expf(now[i][j] - largest);
    }
    __syncthreads();  // all have read the piece
    store_vectors<kTeam, kReadVectors>(now, row.v, first, out);
  }
}

template <int kTeam>
__device__ __forceinline__ Exponentials add_row(const LogitRow& row) {
  constexpr int kPiece = kTeam * kReadVectors;
  Exponentials all;
  LogitVectors<kReadVectors> next;
  load_vectors<kTeam, kReadVectors>(row.logits, row.v, RowTeam<kTeam>::thread(), next);
  for (int first = RowTeam<kTeam>::thread(); first * kLogitVector < row.v; first += kPiece) {
    LogitVectors<kReadVectors> now;
    memcpy(now, next, sizeof(now));
    load_vectors<kTeam, kReadVectors>(row.logits, row.v, first + kPiece, next);
    all.add<kReadVectors>(now);
  }
  all.combine<kTeam>();
  return all;
}

// A block a row.
template <int kTeam, class Y>
__global__ void __launch_bounds__(kTeam) read_rows_twice(const SoftmaxLossRowsArgs args) {
  start_successor();
  wait_for_predecessor();
  const LogitRow row(args, blockIdx.x);
  const int thread = RowTeam<kTeam>::thread();
  if (row.target == kIgnoredTarget) return row.leave_out<kTeam, Y>();
  const Exponentials all = add_row<kTeam>(row);
  const RowSoftmax softmax = row.finish(all, thread);
  if constexpr (kWanted<Y>) {
    Y* const gradient = gradient_row<Y>(row.logits, args.stride);
    const float factor = softmax.sound ? static_cast<float>(softmax.factor) : NAN;
    scale_row<kTeam>(row, all.largest, factor, gradient);
    if (softmax.sound) row.write_target<kTeam>(softmax, gradient);
  }
}

template <int kTeam, int N, class Y>
bool launched_held(const SoftmaxLossRowsArgs& args, Context& ctx) {
  if (args.v > kTeam * N * kLogitVector) return false;
  constexpr int kRows = RowTeam<kTeam>::kRows;
  launch_dependent("cross_entropy: the loss", hold_rows<kTeam, N, Y>,
                   {grid_blocks(args.rows, kRows), kTeam * kRows}, ctx, args);
  return true;
}

template <class Y>
void launch(const SoftmaxLossRowsArgs& args, Context& ctx) {
  if (launched_held<kWarpLanes, 1, Y>(args, ctx) || launched_held<kWarpLanes, 8, Y>(args, ctx) ||
      launched_held<256, 8, Y>(args, ctx) || launched_held<kMostThreads, 8, Y>(args, ctx)) {
    return;
  }
  launch_dependent("cross_entropy: the loss", read_rows_twice<kMostThreads, Y>,
                   {grid_blocks(args.rows), kMostThreads}, ctx, args);
}

}  // namespace

void softmax_loss_rows_cuda(const SoftmaxLossRowsArgs& args, Context& ctx) {
  check_input(args.v <= std::numeric_limits<std::int32_t>::max() / 2, "cross_entropy: ", args.v,
              " rows of the head; expected no more than a target can name");
  switch (args.gradient) {
    case LogitGradient::kNone:
      return launch<void>(args, ctx);
    case LogitGradient::kF32:
      return launch<float>(args, ctx);
    case LogitGradient::kBf16:
      return launch<__nv_bfloat16>(args, ctx);
  }
}

ConstMatrix logit_gradient(const SoftmaxLossRowsArgs& args) {
  ConstMatrix out;
  const bool bf16 = args.gradient == LogitGradient::kBf16;
  out.dtype = bf16 ? DType::kBf16 : DType::kF32;
  out.data = bf16 ? static_cast<void*>(gradient_row<Bf16>(args.logits, args.stride)) : args.logits;
  out.shape = {args.rows, args.v};
  out.stride = {bf16 ? 2 * args.stride : args.stride, 1};
  return out;
}

}  // namespace mamba3
