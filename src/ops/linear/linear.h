// y = x w^T: every projection of the model and its head.
#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "mamba3/context.h"

namespace mamba3 {

// How the inputs of a linear are rounded. Sums are fp32 in both. kBf16 rounds x to bf16 (weights of
// a bf16 file are bf16 already); kF32 rounds nothing: bf16 weights are widened, exactly.
enum class Compute : std::uint8_t { kF32, kBf16 };

// kGemm: oneDNN, for many rows. kSkinny: our own kernel, which streams the weights once at memory
// speed whatever the number of rows. The two add in different orders, so a caller that promises
// equal bits for any number of rows names the path; kAuto takes kSkinny for up to 16 rows. On each
// path a row's bits do not depend on the other rows, on their number, or on the thread count.
//
// On a GPU kSkinny keeps that promise for up to 16 rows; more take what is fastest for their
// number, so their bits may change with it. Some kernels fetch weights while those before
// them in the stream still run: whoever writes weights with a kernel waits for it first.
enum class LinearPath : std::uint8_t { kAuto, kSkinny, kGemm };

struct LinearArgs {
  ConstMatrix x;  // [rows, k]  bf16: on a GPU, with kBf16
  TensorRef w;    // [n, k] bf16 or f32, contiguous
  Matrix y;       // [rows, n]  bf16: on a GPU, rounded once from the fp32 sums
  Compute compute = Compute::kF32;
  LinearPath path = LinearPath::kAuto;
  bool accumulate = false;  // y += x w^T, on a GPU; y is fp32
};

std::size_t linear_workspace_bytes(const LinearArgs& args, const Context& ctx);
void linear(const LinearArgs& args, Context& ctx);

}  // namespace mamba3
