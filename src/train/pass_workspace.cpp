#include "train/pass_workspace.h"

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "core/arena.h"
#include "model/mixer.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/linear_backward/linear_backward.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"

namespace mamba3 {
namespace {

// Sizes of rows that lie nowhere: an op is only asked what it would take for them.
class Nowhere {
 public:
  Matrix rows(std::int64_t rows, std::int64_t columns, bool bf16) {
    const std::array<std::int64_t, 2> shape{rows, columns};
    if (bf16) return TensorView<Bf16, 2>(reinterpret_cast<Bf16*>(&number_), shape);
    return TensorView<float, 2>(&number_, shape);
  }
  TensorRef weights(std::int64_t n, std::int64_t k, bool bf16) const {
    return {
        reinterpret_cast<const std::byte*>(&number_), bf16 ? DType::kBf16 : DType::kF32, {n, k}};
  }
  template <class T>
  std::span<const T> numbers(std::int64_t count) const {
    return {reinterpret_cast<const T*>(&number_), static_cast<std::size_t>(count)};
  }
  TensorView<float, 2> floats(std::int64_t n, std::int64_t k) { return {&number_, {n, k}}; }

 private:
  // Ops ask how their rows begin; those of a pass begin so.
  alignas(Arena::kAlignBytes) float number_ = 0;
};

std::size_t loss_bytes(const ModelConfig& config, const PassShape& shape, Compute compute,
                       const Context& ctx) {
  const std::int64_t t = shape.tokens, d = config.width, v = config.padded_vocab();
  Nowhere nowhere;
  CrossEntropySums sums;
  CrossEntropyArgs args;
  args.x = nowhere.rows(t, d, shape.bf16_activations);
  args.w = nowhere.weights(v, d, compute == Compute::kBf16);
  args.targets = nowhere.numbers<std::int32_t>(t);
  args.sums = &sums;
  args.grad_x = nowhere.rows(t, d, shape.bf16_activations);
  args.grad_w = nowhere.floats(v, d);
  args.compute = compute;
  return cross_entropy_workspace_bytes(args, ctx);
}

// `columns`: of grad_y, n or more.
std::size_t product_bytes(std::int64_t n, std::int64_t k, std::int64_t columns,
                          const PassShape& shape, Compute compute, const Context& ctx) {
  Nowhere nowhere;
  LinearBackwardArgs args;
  args.x = nowhere.rows(shape.tokens, k, shape.bf16_activations);
  args.w = nowhere.weights(n, k, compute == Compute::kBf16);
  args.grad_y = nowhere.rows(shape.tokens, columns, shape.bf16_activations);
  args.grad_x = nowhere.rows(shape.tokens, k, shape.bf16_activations);
  args.grad_w = nowhere.floats(n, k);
  args.compute = compute;
  return linear_backward_workspace_bytes(args, ctx);
}

// Where sequences of equal length end, those that a CPU's way back takes at a time and more: the
// rest is as they are.
std::vector<std::int64_t> equal_sequences(const PassShape& shape) {
  constexpr std::int64_t kEnough = 8192;
  std::vector<std::int64_t> bounds{0};
  for (std::int64_t i = 1; i <= std::min(shape.sequences, kEnough); ++i) {
    bounds.push_back(shape.tokens / shape.sequences * i +
                     shape.tokens % shape.sequences * i / shape.sequences);
  }
  return bounds;
}

std::size_t scan_bytes(const ModelConfig& config, const PassShape& shape, const Context& ctx) {
  const std::int64_t inner = config.inner();
  Nowhere nowhere;
  std::vector<std::int64_t> bounds;
  Mamba3ScanBackwardArgs args;
  args.dims = mixer_dims(config);
  if (ctx.gpu()) {  // where sequences end is not read
    args.cu_seqlens = nowhere.numbers<std::int64_t>(shape.sequences + 1);
    args.slots = nowhere.numbers<std::int32_t>(shape.sequences);
  } else {
    bounds = equal_sequences(shape);
    args.cu_seqlens = bounds;
    args.slots = nowhere.numbers<std::int32_t>(std::ssize(bounds) - 1);
  }
  args.grad_y = nowhere.rows(shape.tokens, inner, shape.bf16_activations);
  args.bf16_products = shape.bf16_activations;
  if (shape.bf16_activations) {
    args.columns.z_bf16 = nowhere.numbers<Bf16>(1).data();
    args.columns.x_bf16 = args.columns.z_bf16;
    args.grad_columns.rows_bf16 =
        static_cast<Bf16*>(nowhere.rows(shape.tokens, config.in_proj_rows(), true).data);
  }
  return mamba3_scan_backward_workspace_bytes(args, ctx);
}

// What ops take beside a pass: the most of the head with its loss, of the scan's way back and of
// what products round, widen or copy, one of which is at work at a time. The forward ops take less.
std::size_t ops_bytes(const ModelConfig& config, const PassShape& shape, Compute compute,
                      const Context& ctx) {
  const std::int64_t d = config.width, f = config.mlp_hidden;
  std::size_t most =
      std::max({loss_bytes(config, shape, compute, ctx), scan_bytes(config, shape, ctx),
                product_bytes(config.in_proj_rows(), d, projected_columns(config, shape), shape,
                              compute, ctx),
                product_bytes(d, config.inner(), d, shape, compute, ctx)});
  if (f > 0) most = std::max(most, product_bytes(2 * f, d, 2 * f, shape, compute, ctx));
  return most;
}

}  // namespace

std::size_t pass_workspace_bytes(const ModelConfig& config, const PassShape& shape, Compute compute,
                                 const Context& ctx) {
  return pass_bytes(config, shape) + ops_bytes(config, shape, compute, ctx);
}

}  // namespace mamba3
