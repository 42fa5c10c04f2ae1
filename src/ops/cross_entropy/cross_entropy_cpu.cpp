// Rows that take part are gathered slice by slice; the slice's logits become their gradient in
// place, and that goes on into grad_x and grad_w at once.
#include "ops/cross_entropy/cross_entropy_cpu.h"

#include <algorithm>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "ops/cross_entropy/softmax_loss.h"
#include "ops/linear_backward/linear_backward.h"

namespace mamba3 {
namespace {

// Logits of a slice: as many as a third-level cache holds, but enough rows to pay for the products'
// copies of the weights. By v alone, so that no sum depends on the machine.
std::int64_t slice_rows(const CrossEntropyArgs& args) {
  constexpr std::int64_t kSliceElements = std::int64_t{16} << 20;
  constexpr std::int64_t kFewestRows = 128, kMostRows = 512;
  const std::int64_t v = std::max<std::int64_t>(1, args.w.shape[0]);
  const auto rows = static_cast<std::int64_t>(args.targets.size());
  return std::min(rows, std::clamp(kSliceElements / v, kFewestRows, kMostRows));
}

bool wants_gradient(const CrossEntropyArgs& args) {
  return args.grad_x.data != nullptr || args.grad_w.data != nullptr;
}

// Some of the rows that take part.
struct Slice {
  std::span<const std::int32_t> rows;  // their indices
  TensorView<float, 2> x;              // [rows, d]
  TensorView<float, 2> logits;         // [rows, v]
  TensorView<float, 2> grad_x;         // [rows, d] or no data
};

LinearArgs head(const CrossEntropyArgs& args, const Slice& slice) {
  return {slice.x, args.w, slice.logits, args.compute, LinearPath::kGemm};
}

LinearBackwardArgs head_backward(const CrossEntropyArgs& args, const Slice& slice) {
  return {slice.x,     args.w,       slice.logits,     slice.grad_x,
          args.grad_w, args.compute, args.accumulate_w};
}

void loss_of_rows(const CrossEntropyArgs& args, const Slice& slice, std::span<SoftmaxLoss> out,
                  Context& ctx) {
  ctx.pool().run(slice.x.shape[0], [&](std::int64_t i, int) {
    SoftmaxLossArgs row;
    row.logits = &slice.logits(i, 0);
    row.v = args.w.shape[0];
    row.target = args.targets[slice.rows[i]];
    row.z_weight = args.z_weight;
    row.grad_scale = args.grad_scale;
    row.gradient = wants_gradient(args);
    out[i] = softmax_loss(row);
  });
}

void add_losses(const CrossEntropyArgs& args, const Slice& slice,
                std::span<const SoftmaxLoss> losses) {
  CrossEntropySums& sums = *args.sums;
  for (std::size_t i = 0; i < slice.rows.size(); ++i) {
    sums.loss += losses[i].loss;
    sums.squared_z += losses[i].z * losses[i].z;
    sums.correct += static_cast<std::int64_t>(losses[i].correct);
    if (args.losses != nullptr) args.losses[slice.rows[i]] = losses[i].loss;
  }
  sums.rows += static_cast<std::int64_t>(slice.rows.size());
}

void run_slice(const CrossEntropyArgs& args, const Slice& slice, std::span<SoftmaxLoss> losses,
               Context& ctx) {
  const std::int64_t d = args.x.shape[1];
  for (std::size_t i = 0; i < slice.rows.size(); ++i) {
    std::copy_n(args.x.row(slice.rows[i]), d, &slice.x(i, 0));
  }
  linear(head(args, slice), ctx);
  loss_of_rows(args, slice, losses, ctx);
  add_losses(args, slice, losses);
  if (!wants_gradient(args)) return;
  linear_backward(head_backward(args, slice), ctx);
  if (args.grad_x.data == nullptr) return;
  for (std::size_t i = 0; i < slice.rows.size(); ++i) {
    std::copy_n(&slice.grad_x(i, 0), d, args.grad_x.row(slice.rows[i]));
  }
}

void clear_ignored(const CrossEntropyArgs& args) {
  for (std::size_t i = 0; i < args.targets.size(); ++i) {
    if (args.targets[i] != kIgnoredTarget) continue;
    const auto row = static_cast<std::int64_t>(i);
    if (args.losses != nullptr) args.losses[i] = 0;
    if (args.grad_x.data != nullptr) std::fill_n(args.grad_x.row(row), args.x.shape[1], 0.0f);
  }
}

void clear_weights(const CrossEntropyArgs& args) {
  if (args.accumulate_w || args.grad_w.data == nullptr) return;
  for (std::int64_t i = 0; i < args.grad_w.shape[0]; ++i) {
    std::fill_n(args.grad_w.data + i * args.grad_w.stride[0], args.grad_w.shape[1], 0.0f);
  }
}

// The views of a slice of `rows` rows; without `scope` only their shapes.
Slice make_slice(const CrossEntropyArgs& args, std::int64_t rows, ArenaScope* scope) {
  const auto take = [&](std::int64_t columns) {
    float* data = scope == nullptr ? nullptr : scope->allocate<float>(rows * columns);
    return TensorView<float, 2>(data, {rows, columns});
  };
  Slice slice;
  slice.x = take(args.x.shape[1]);
  slice.logits = take(args.w.shape[0]);
  if (args.grad_x.data != nullptr) slice.grad_x = take(args.x.shape[1]);
  return slice;
}

Slice first_rows(const Slice& all, std::span<const std::int32_t> rows) {
  const auto count = static_cast<std::int64_t>(rows.size());
  Slice slice{rows, all.x.slice(0, count), all.logits.slice(0, count), all.grad_x};
  if (slice.grad_x.data != nullptr) slice.grad_x = all.grad_x.slice(0, count);
  return slice;
}

}  // namespace

std::size_t cross_entropy_workspace_bytes_cpu(const CrossEntropyArgs& args, const Context& ctx) {
  const std::int64_t most = slice_rows(args);
  const Slice slice = make_slice(args, most, nullptr);
  std::size_t bytes = linear_workspace_bytes(head(args, slice), ctx);
  LinearBackwardArgs backward = head_backward(args, slice);
  backward.grad_x.data = args.grad_x.data;  // whether it is wanted
  if (wants_gradient(args)) {
    bytes = std::max(bytes, linear_backward_workspace_bytes(backward, ctx));
  }
  const std::int64_t floats = slice.x.elements() + slice.logits.elements() +
                              (args.grad_x.data != nullptr ? slice.x.elements() : 0);
  return bytes + static_cast<std::size_t>(floats) * sizeof(float) +
         args.targets.size() * sizeof(std::int32_t) +
         static_cast<std::size_t>(most) * sizeof(SoftmaxLoss) + 5 * Arena::kAlignBytes;
}

void cross_entropy_cpu(const CrossEntropyArgs& args, Context& ctx) {
  const auto rows = static_cast<std::int64_t>(args.targets.size());
  *args.sums = {};
  clear_ignored(args);
  ArenaScope scope(ctx.workspace());
  auto* active = scope.allocate<std::int32_t>(rows);
  std::int64_t count = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (args.targets[row] != kIgnoredTarget) active[count++] = static_cast<std::int32_t>(row);
  }
  if (count == 0) return clear_weights(args);
  const std::int64_t most = slice_rows(args);
  const Slice all = make_slice(args, most, &scope);
  const std::span<SoftmaxLoss> losses(scope.allocate<SoftmaxLoss>(most),
                                      static_cast<std::size_t>(most));
  CrossEntropyArgs now = args;
  for (std::int64_t begin = 0; begin < count; begin += most) {
    const std::span<const std::int32_t> indices(
        active + begin, static_cast<std::size_t>(std::min(most, count - begin)));
    run_slice(now, first_rows(all, indices), losses, ctx);
    now.accumulate_w = true;
  }
}

}  // namespace mamba3
