// Two products by cuBLASLt: grad_x = grad_y w and grad_w += grad_y^T x, each from where its factors
// lie, transposed or not. In fp32 with bf16 weights grad_y is split into bf16 numbers whose sum it
// is exactly, as linear splits x.
//
// In bf16 the columns of zeros behind grad_y take part: w gets as many rows of zeros, and what they
// give to grad_w is left out.
#include <algorithm>

#include "core/arena.h"
#include "ops/cuda_ops.h"
#include "ops/launch.cuh"
#include "ops/linear/cublas_product.h"
#include "ops/linear/split_bf16_cuda.h"

namespace mamba3 {
namespace {

// A factor of a product as it lies in memory.
struct Factor {
  const void* data = nullptr;
  std::int64_t stride = 0;
};

Factor factor(const ConstMatrix& m) {
  return {m.data, std::max(m.stride[0], m.shape[1])};
}

Factor bf16_factor(const ConstMatrix& m, ArenaScope& scope, Context& ctx) {
  if (m.is_bf16()) return factor(m);
  const Bf16Parts rounded = split_bf16(m, padded_bf16_stride(m.shape[1]), 1, scope, ctx);
  return {rounded.data, rounded.stride};
}

std::size_t bf16_factor_bytes(const ConstMatrix& m) {
  return m.is_bf16() ? 0 : split_bf16_bytes(m.shape[0], padded_bf16_stride(m.shape[1]), 1);
}

// Of grad_y, at least n.
std::int64_t columns(const LinearBackwardArgs& args) {
  return args.grad_y.shape[1];
}

bool has_zero_columns(const LinearBackwardArgs& args) {
  return columns(args) > args.w.shape[0];
}

// w as products in bf16 read it, a row for each column of grad_y.
Factor bf16_weights(const LinearBackwardArgs& args, ArenaScope& scope, Context& ctx) {
  const Factor w = bf16_factor(matrix_of(args.w), scope, ctx);
  if (!has_zero_columns(args)) return w;
  const std::int64_t taken = args.w.shape[0] * w.stride, all = columns(args) * w.stride;
  auto* out = scope.allocate<Bf16>(all);
  ctx.gpu()->copy(out, w.data, static_cast<std::size_t>(taken) * sizeof(Bf16));
  ctx.gpu()->zero(out + taken, static_cast<std::size_t>(all - taken) * sizeof(Bf16));
  return {out, w.stride};
}

std::size_t bf16_weights_bytes(const LinearBackwardArgs& args) {
  const ConstMatrix w = matrix_of(args.w);
  const std::int64_t stride = w.is_bf16() ? w.shape[1] : padded_bf16_stride(w.shape[1]);
  return bf16_factor_bytes(w) +
         (has_zero_columns(args) ? split_bf16_bytes(columns(args), stride, 1) : 0);
}

constexpr int kTakeThreads = 256;

// to = from, or to += from; rows of k numbers.
struct TakeJob {
  const float* from;
  float* to;
  std::int64_t to_stride;
  std::int64_t elements, k;
  bool accumulate;
};

__global__ void __launch_bounds__(kTakeThreads) take_grad_w_kernel(const TakeJob job) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kTakeThreads + threadIdx.x;
  if (i >= job.elements) return;
  const std::int64_t row = i / job.k;
  float* to = job.to + row * job.to_stride + (i - row * job.k);
  *to = job.accumulate ? *to + job.from[i] : job.from[i];
}

std::size_t wide_grad_w_bytes(const LinearBackwardArgs& args) {
  if (!has_zero_columns(args)) return 0;
  return static_cast<std::size_t>(columns(args) * args.w.shape[1]) * sizeof(float) +
         Arena::kAlignBytes;
}

// fp32 products whose one factor is bf16.
bool is_split(const LinearBackwardArgs& args) {
  return args.compute == Compute::kF32 && args.w.dtype == DType::kBf16;
}

struct Products {
  const LinearBackwardArgs& args;
  void* workspace;
  Context& ctx;

  void grad_x(const Factor& grad_y, const Factor& w, bool bf16, bool accumulate = false) const {
    CublasProduct product = of(grad_y, w, bf16);
    product.k = bf16 ? columns(args) : args.w.shape[0];
    product.y = args.grad_x;
    product.accumulate = accumulate;
    cublas_product(product, workspace, ctx);
  }
  void grad_w(const Factor& grad_y, const Factor& x, bool bf16) const {
    grad_w(grad_y, x, bf16, args.grad_w, args.accumulate_w);
  }
  void grad_w(const Factor& grad_y, const Factor& x, bool bf16, const Matrix& to,
              bool accumulate) const {
    CublasProduct product = of(grad_y, x, bf16);
    product.x_transposed = true;
    product.k = args.grad_y.shape[0];
    product.y = to;
    product.accumulate = accumulate;
    cublas_product(product, workspace, ctx);
  }

 private:
  static CublasProduct of(const Factor& left, const Factor& right, bool bf16) {
    CublasProduct product;
    product.x = left.data;
    product.x_stride = left.stride;
    product.w = right.data;
    product.w_stride = right.stride;
    product.w_transposed = true;
    product.bf16 = bf16;
    product.sums = CublasSums::kFp32;
    return product;
  }
};

// A row of it for each column of grad_y, from where w's rows are taken.
void wide_grad_w(const Products& products, const Factor& grad_y, const Factor& x,
                 ArenaScope& scope) {
  const LinearBackwardArgs& args = products.args;
  const std::int64_t k = args.w.shape[1];
  const TensorView<float, 2> wide(scope.allocate<float>(columns(args) * k), {columns(args), k});
  products.grad_w(grad_y, x, true, wide, false);
  const TakeJob job{
      wide.data, args.grad_w.data, std::max(args.grad_w.stride[0], k), args.w.shape[0] * k,
      k,         args.accumulate_w};
  take_grad_w_kernel<<<grid_blocks(job.elements, kTakeThreads), kTakeThreads, 0,
                       stream_of(products.ctx)>>>(job);
  check_launch("linear_backward: gradient of the weights");
}

void in_bf16(const Products& products, ArenaScope& scope) {
  const LinearBackwardArgs& args = products.args;
  Context& ctx = products.ctx;
  const Factor grad_y = bf16_factor(args.grad_y, scope, ctx);
  if (args.grad_x.data != nullptr) {
    ArenaScope inner(ctx.workspace());
    products.grad_x(grad_y, bf16_weights(args, inner, ctx), true);
  }
  if (args.grad_w.data == nullptr) return;
  const Factor x = bf16_factor(args.x, scope, ctx);
  if (has_zero_columns(args)) return wide_grad_w(products, grad_y, x, scope);
  products.grad_w(grad_y, x, true);
}

void in_f32(const Products& products, ArenaScope& scope) {
  const LinearBackwardArgs& args = products.args;
  if (args.grad_w.data != nullptr) products.grad_w(factor(args.grad_y), factor(args.x), false);
  if (args.grad_x.data == nullptr) return;
  if (!is_split(args)) {
    return products.grad_x(factor(args.grad_y), factor(matrix_of(args.w)), false);
  }
  const Factor w = bf16_weights(args, scope, products.ctx);
  const Bf16Parts parts = split_bf16(args.grad_y, padded_bf16_stride(args.grad_y.shape[1]),
                                     kExactParts, scope, products.ctx);
  // The smallest parts first: their sum is not lost beside the large ones.
  for (int i = kExactParts - 1; i >= 0; --i) {
    products.grad_x({parts.part(i), parts.stride}, w, true, i + 1 < kExactParts);
  }
}

// Sums of nothing.
void clear(const Matrix& m, Context& ctx) {
  const auto bytes = static_cast<std::size_t>(dtype_bytes(m.dtype));
  const auto width = static_cast<std::size_t>(m.shape[1]) * bytes;
  const auto pitch = static_cast<std::size_t>(std::max(m.stride[0], m.shape[1])) * bytes;
  check_cuda(cudaMemset2DAsync(m.data, pitch, 0, width, static_cast<std::size_t>(m.shape[0]),
                               stream_of(ctx)),
             "linear_backward");
}

}  // namespace

std::size_t linear_backward_workspace_bytes_cuda(const LinearBackwardArgs& args) {
  if (args.grad_y.shape[0] == 0 || args.w.shape[1] == 0 || args.w.shape[0] == 0) return 0;
  std::size_t bytes = kCublasWorkspaceBytes + Arena::kAlignBytes;
  const bool wants_x = args.grad_x.data != nullptr, wants_w = args.grad_w.data != nullptr;
  if (args.compute == Compute::kF32) {
    if (!wants_x || !is_split(args)) return bytes;
    return bytes + bf16_weights_bytes(args) +
           split_bf16_bytes(args.grad_y.shape[0], padded_bf16_stride(columns(args)), kExactParts);
  }
  std::size_t of_other = 0;  // one product after the other
  if (wants_x) of_other = bf16_weights_bytes(args);
  if (wants_w) {
    of_other = std::max(of_other, bf16_factor_bytes(args.x) + wide_grad_w_bytes(args));
  }
  return bytes + bf16_factor_bytes(args.grad_y) + of_other;
}

void linear_backward_cuda(const LinearBackwardArgs& args, Context& ctx) {
  const bool assigns_w = args.grad_w.data != nullptr && !args.accumulate_w;
  if (args.w.shape[1] == 0) return;
  if (args.grad_y.shape[0] == 0 || args.w.shape[0] == 0) {
    if (args.grad_x.data != nullptr) clear(args.grad_x, ctx);
    if (assigns_w) clear(args.grad_w, ctx);
    return;
  }
  ArenaScope scope(ctx.workspace());
  const Products products{args, scope.allocate<std::byte>(kCublasWorkspaceBytes), ctx};
  if (args.compute == Compute::kBf16) {
    in_bf16(products, scope);
  } else {
    in_f32(products, scope);
  }
}

}  // namespace mamba3
