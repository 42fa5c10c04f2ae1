// The Mamba-3 recurrence over many tokens of one or more sequences, from and to a state.
//
// Formulas: docs/SEMANTICS.md (the merged, chunked form); source: arXiv 2603.15569 and the authors'
// package.
#pragma once

#include <cstdint>
#include <span>

#include "core/matrix.h"
#include "mamba3/context.h"
#include "ops/mamba3_common/kernel_path.h"
#include "ops/mamba3_common/mamba3_args.h"

namespace mamba3 {

struct Mamba3ScanArgs {
  Mamba3Dims dims;
  Mamba3Params params;
  Mamba3Columns columns;  // t tokens, sequences one after the other
  std::span<const std::int64_t>
      cu_seqlens;  // [q + 1], first 0, not decreasing, last t; empty sequences allowed
  std::span<const std::int32_t>
      slots;            // [q], all different; sequence i starts from and ends in slots[i]
  Mamba3States states;  // read and overwritten; a slot of zeros is a fresh sequence
  Matrix y;             // [t, h * p], rows may be strided; gated, ranks summed: what out_proj gets
  // Matrix products inside a chunk round their inputs to bf16 (states, decays and sums stay fp32)
  // where the machine is faster so. Never set for exact results.
  bool bf16_products = false;
  // On a GPU, long sequences that are too few to fill it are cut into parts that are walked at
  // once, which rounds differently. Never with this: results do not depend on neighbours or cuts.
  bool one_walk = false;
  // Not with the tuned kernels, but as on a GPU that has none: for tests and measurements.
  bool general = false;
};

// Tokens in a chunk of the path on a CPU.
std::int64_t mamba3_scan_chunk_tokens(const Mamba3Dims& dims);

// Cutting a sequence at a multiple of it changes no bit of what follows; on a GPU that takes
// one_walk.
std::int64_t mamba3_scan_grid_tokens(const Mamba3Dims& dims, const Context& ctx);

// Whether the layer is one that the tensor cores of this GPU scan in chunks, see mamba3_scan_path.
// That takes `bf16_products`; z, x and y may then be bf16, all three, with rows that begin on 16
// bytes. Every other layer takes its tokens one by one, in fp32.
bool mamba3_scan_takes_bf16(const Mamba3Dims& dims, const Context& ctx);

// The kernels that a GPU of this compute capability (90 for 9.0) takes, with Mamba3ScanArgs's
// bf16_products or without: tuned ones in chunks for p 64, n 64 or 128, SISO or MIMO of rank 2 or
// 4, on compute capability 9.0; otherwise, where products are bf16, n and p multiples of 8 and n at
// least 64 (SISO) or 32 (MIMO), in chunks by mma.sync; and token by token.
KernelPath mamba3_scan_path(const Mamba3Dims& dims, int compute_capability, bool bf16_products);

// Workspace taken from ctx.workspace() during the call.
std::size_t mamba3_scan_workspace_bytes(const Mamba3ScanArgs& args, const Context& ctx);

// The same input gives the same bits for any thread count, any packing and any neighbours; on a GPU
// with bf16_products that takes one_walk too.
void mamba3_scan(const Mamba3ScanArgs& args, Context& ctx);

}  // namespace mamba3
