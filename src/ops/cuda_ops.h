// The ops on a GPU: checked arguments in, everything they point at in the GPU's memory, ids, slots
// and cu_seqlens too. They return when their kernels are in the Context's stream. Builds without
// CUDA have stand-ins (cuda_ops_none.cpp) that are never reached: such a build opens no GPU.
#pragma once

#include "ops/embedding/embedding.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/linear/fused_linear.h"
#include "ops/linear/linear.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_ring_ops.h"
#include "ops/mamba3_step/mamba3_step.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/sampling/sample_rows.h"
#include "ops/swiglu/swiglu.h"

namespace mamba3 {

// Where a scan on a GPU may be cut without changing a bit: at multiples of it.
constexpr std::int64_t kScanGridTokensCuda = 256;

void embedding_cuda(const EmbeddingArgs& args, Context& ctx);
bool fused_linear_takes_cuda(const FusedLinearArgs& args, const Context& ctx);
void fused_linear_cuda(const FusedLinearArgs& args, Context& ctx);
void gather_rows_cuda(const GatherRowsArgs& args, Context& ctx);
void linear_cuda(const LinearArgs& args, Context& ctx);
void mamba3_scan_cuda(const Mamba3ScanArgs& args, Context& ctx);
void mamba3_step_cuda(const Mamba3StepArgs& args, Context& ctx);  // without a ring
void mamba3_ring_step_cuda(const Mamba3StepArgs& args, Context& ctx);
void mamba3_ring_advance_cuda(const RingCursorArgs& args, Gpu& gpu);
void mamba3_ring_roll_back_cuda(const RingCursorArgs& args, std::span<const std::int32_t> tokens,
                                Gpu& gpu);
void mamba3_ring_settle_cuda(const RingSettleArgs& args, Gpu& gpu);
void mamba3_ring_clear_cuda(const RingCursorArgs& args, Gpu& gpu);
void rms_norm_cuda(const RmsNormArgs& args, Context& ctx);
void sample_rows_cuda(const SampleRowsArgs& args, Context& ctx);
void swiglu_cuda(const SwigluArgs& args, Context& ctx);

}  // namespace mamba3
