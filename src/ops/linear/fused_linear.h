// A linear together with what stands around it in a block: the norm before it, SwiGLU or the
// residual's sum behind it. On a GPU that is one kernel, for more than a few rows two with a norm;
// elsewhere it is done op by op.
#pragma once

#include "ops/linear/linear.h"

namespace mamba3 {

// The first half of a norm that two products share. With s = mean(y^2) of a row,
//     w2 rms_norm(y) = w2 (y * weight) / sqrt(s + eps):
// the product that adds onto y leaves y * weight, rounded to bf16 as a whole norm would be, and the
// squares; the one behind it, of w2, divides (FusedLinearArgs::squares). So nothing reads y for the
// norm alone. Squares are summed in fp32: rows with numbers of 1e19 and more become zeros or NaN.
struct HalfNorm {
  const float* weight = nullptr;  // [n], of the norm; null: there is no half norm
  Matrix scaled;                  // [rows, n]  bf16: y * weight
  float* squares = nullptr;       // [rows, n / kNormPart]: sums of y^2 over so many columns
};

constexpr std::int64_t kNormPart = 256;

struct FusedLinearArgs {
  ConstMatrix x;                       // [rows, k]  bf16: as in LinearArgs
  const float* norm_weight = nullptr;  // [k]: x, which is fp32, goes through rms_norm first
  float norm_eps = 1e-5f;
  TensorRef w;              // [n, k], or [2 n, k] with swiglu
  Matrix y;                 // [rows, n]  bf16: as in LinearArgs
  bool swiglu = false;      // y = first half * silu(second half)
  bool accumulate = false;  // y += ; fp32, not with swiglu
  Compute compute = Compute::kF32;
  LinearPath path = LinearPath::kAuto;
  Matrix rest;  // [rows, m], fp32: of m more rows of w, behind those of y; or no data
  // Half norms, on kGemm and only where takes_half_norm says so.
  HalfNorm half_norm;              // of y, which is added to
  const float* squares = nullptr;  // [rows, k / kNormPart]: of x, which is a HalfNorm's `scaled`;
                                   // what is summed is divided by sqrt(mean square + norm_eps)
};

// A whole norm gives the bits of rms_norm whether it is part of the kernel or not. How a row's bits
// depend on the number of rows: as in linear.
void fused_linear(const FusedLinearArgs& args, Context& ctx);

// Whether there is a kernel for the half norms of `args`. The number of rows plays no part.
bool takes_half_norm(const FusedLinearArgs& args, const Context& ctx);

}  // namespace mamba3
