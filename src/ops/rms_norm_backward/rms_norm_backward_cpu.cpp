#include "ops/rms_norm_backward/rms_norm_backward_cpu.h"

#include <algorithm>
#include <cmath>

#include "core/arena.h"
#include "core/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rms_norm_backward/rms_norm_backward_cpu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mamba3::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

struct RowSums {
  double squares = 0;   // of residual
  double products = 0;  // of residual, weight and grad_y
};

// The order of the sums depends on d alone.
RowSums sum_row(const float* residual, const float* weight, const float* grad_y, std::int64_t d) {
  const hn::ScalableTag<double> df64;
  const hn::Rebind<float, decltype(df64)> df32;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df64));
  auto squares = hn::Zero(df64);
  auto products = hn::Zero(df64);
  std::int64_t i = 0;
  for (; i + lanes <= d; i += lanes) {
    const auto r = hn::PromoteTo(df64, hn::LoadU(df32, residual + i));
    const auto w = hn::PromoteTo(df64, hn::LoadU(df32, weight + i));
    const auto g = hn::PromoteTo(df64, hn::LoadU(df32, grad_y + i));
    squares = hn::MulAdd(r, r, squares);
    products = hn::MulAdd(hn::Mul(g, w), r, products);
  }
  RowSums sums{hn::GetLane(hn::SumOfLanes(df64, squares)),
               hn::GetLane(hn::SumOfLanes(df64, products))};
  for (; i < d; ++i) {
    sums.squares += static_cast<double>(residual[i]) * residual[i];
    sums.products += static_cast<double>(grad_y[i]) * weight[i] * residual[i];
  }
  return sums;
}

// `rstd` is 1 / rms, `mean` that of g n. grad_weight may be null.
void add_row(const float* residual, const float* weight, const float* grad_y, float rstd,
             float mean, std::int64_t d, float* grad_residual, float* grad_weight) {
  const hn::ScalableTag<float> df;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(df));
  const auto factor = hn::Set(df, rstd);
  const auto of_mean = hn::Set(df, mean);
  std::int64_t i = 0;
  for (; i + lanes <= d; i += lanes) {
    const auto normed = hn::Mul(hn::LoadU(df, residual + i), factor);
    const auto g = hn::LoadU(df, grad_y + i);
    const auto inner = hn::NegMulAdd(normed, of_mean, hn::Mul(g, hn::LoadU(df, weight + i)));
    auto* to = grad_residual + i;
    hn::StoreU(hn::MulAdd(inner, factor, hn::LoadU(df, to)), df, to);
    if (grad_weight == nullptr) continue;
    hn::StoreU(hn::MulAdd(g, normed, hn::LoadU(df, grad_weight + i)), df, grad_weight + i);
  }
  for (; i < d; ++i) {
    const float normed = residual[i] * rstd;
    grad_residual[i] += (grad_y[i] * weight[i] - normed * mean) * rstd;
    if (grad_weight != nullptr) grad_weight[i] += grad_y[i] * normed;
  }
}

// Rows [begin, end); what they give to the weight goes to `grad_weight` [d] unless it is null.
void rms_norm_backward_rows(const RmsNormBackwardArgs& args, std::int64_t begin, std::int64_t end,
                            float* grad_weight) {
  const std::int64_t d = args.residual.shape[1];
  if (grad_weight != nullptr) std::fill_n(grad_weight, d, 0.0f);
  for (std::int64_t row = begin; row < end; ++row) {
    const float* residual = args.residual.data + row * args.residual.stride[0];
    const float* grad_y = args.grad_y.row(row);
    const RowSums sums = sum_row(residual, args.weight, grad_y, d);
    const double rstd = 1.0 / std::sqrt(sums.squares / static_cast<double>(d) + args.eps);
    const double mean = sums.products * rstd / static_cast<double>(d);
    add_row(residual, args.weight, grad_y, static_cast<float>(rstd), static_cast<float>(mean), d,
            args.grad_residual.data + row * args.grad_residual.stride[0], grad_weight);
  }
}

}  // namespace mamba3::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba3 {
namespace {

constexpr std::int64_t kRowsPerTask = 64;
constexpr std::int64_t kColumnsPerTask = 256;

HWY_EXPORT(rms_norm_backward_rows);

std::int64_t pieces_of(const RmsNormBackwardArgs& args) {
  return (args.residual.shape[0] + kRowsPerTask - 1) / kRowsPerTask;
}

// grad_weight += the pieces' sums [pieces, d], in double.
void add_pieces(const RmsNormBackwardArgs& args, const float* sums, Context& ctx) {
  const std::int64_t d = args.residual.shape[1];
  ctx.pool().run((d + kColumnsPerTask - 1) / kColumnsPerTask, [&](std::int64_t task, int) {
    const std::int64_t begin = task * kColumnsPerTask;
    const std::int64_t count = std::min(kColumnsPerTask, d - begin);
    double total[kColumnsPerTask];
    std::copy_n(args.grad_weight + begin, count, total);
    for (std::int64_t piece = 0; piece < pieces_of(args); ++piece) {
      const float* from = sums + piece * d + begin;
      for (std::int64_t i = 0; i < count; ++i) total[i] += from[i];
    }
    for (std::int64_t i = 0; i < count; ++i) {
      args.grad_weight[begin + i] = static_cast<float>(total[i]);
    }
  });
}

}  // namespace

std::size_t rms_norm_backward_workspace_bytes_cpu(const RmsNormBackwardArgs& args) {
  if (args.grad_weight == nullptr) return 0;
  return static_cast<std::size_t>(pieces_of(args) * args.residual.shape[1]) * sizeof(float) +
         Arena::kAlignBytes;
}

void rms_norm_backward_cpu(const RmsNormBackwardArgs& args, Context& ctx) {
  const std::int64_t rows = args.residual.shape[0], d = args.residual.shape[1];
  ArenaScope scope(ctx.workspace());
  float* sums = nullptr;
  if (args.grad_weight != nullptr) sums = scope.allocate<float>(pieces_of(args) * d);
  const auto kernel = HWY_DYNAMIC_DISPATCH(rms_norm_backward_rows);
  ctx.pool().run(pieces_of(args), [&](std::int64_t piece, int) {
    const std::int64_t begin = piece * kRowsPerTask;
    kernel(args, begin, std::min(rows, begin + kRowsPerTask),
           sums == nullptr ? nullptr : sums + piece * d);
  });
  if (sums != nullptr) add_pieces(args, sums, ctx);
}

}  // namespace mamba3
#endif  // HWY_ONCE
