// The ops on a GPU: checked arguments in, everything they point at in the GPU's memory, ids, slots
// and cu_seqlens too. They return when their kernels are in the Context's stream. Builds without
// CUDA have stand-ins (cuda_ops_none.cpp) that are never reached: such a build opens no GPU.
#pragma once

#include "ops/adamw/adamw.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/embedding_backward/embedding_backward.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/global_norm/global_norm.h"
#include "ops/linear/fused_linear.h"
#include "ops/linear/linear.h"
#include "ops/linear_backward/linear_backward.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_scan_backward/mamba3_scan_backward.h"
#include "ops/mamba3_step/mamba3_ring_ops.h"
#include "ops/mamba3_step/mamba3_step.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/rms_norm_backward/rms_norm_backward.h"
#include "ops/round_bf16/round_bf16.h"
#include "ops/sampling/sample_rows.h"
#include "ops/swiglu/swiglu.h"
#include "ops/swiglu_backward/swiglu_backward.h"

namespace mamba3 {

// Where a scan on a GPU may be cut without changing a bit: at multiples of it.
constexpr std::int64_t kScanGridTokensCuda = 256;

void adamw_cuda(const AdamwArgs& args, Context& ctx);
std::size_t cross_entropy_workspace_bytes_cuda(const CrossEntropyArgs& args, const Context& ctx);
void cross_entropy_cuda(const CrossEntropyArgs& args, Context& ctx);
std::size_t embedding_backward_workspace_bytes_cuda(const EmbeddingBackwardArgs& args);
void embedding_backward_cuda(const EmbeddingBackwardArgs& args, Context& ctx);
void embedding_cuda(const EmbeddingArgs& args, Context& ctx);
bool fused_linear_takes_cuda(const FusedLinearArgs& args, const Context& ctx);
void fused_linear_cuda(const FusedLinearArgs& args, Context& ctx);
void gather_rows_cuda(const GatherRowsArgs& args, Context& ctx);
void global_norm_cuda(const GlobalNormArgs& args, Context& ctx);
std::size_t linear_backward_workspace_bytes_cuda(const LinearBackwardArgs& args);
void linear_backward_cuda(const LinearBackwardArgs& args, Context& ctx);
void linear_cuda(const LinearArgs& args, Context& ctx);
void mamba3_scan_backward_cuda(const Mamba3ScanBackwardArgs& args, Context& ctx);
std::size_t mamba3_scan_backward_workspace_bytes_cuda(const Mamba3ScanBackwardArgs& args,
                                                      const Context& ctx);
void mamba3_scan_cuda(const Mamba3ScanArgs& args, Context& ctx);
void mamba3_step_cuda(const Mamba3StepArgs& args, Context& ctx);  // without a ring
void mamba3_ring_step_cuda(const Mamba3StepArgs& args, Context& ctx);
void mamba3_ring_advance_cuda(const RingCursorArgs& args, Gpu& gpu);
void mamba3_ring_roll_back_cuda(const RingCursorArgs& args, std::span<const std::int32_t> tokens,
                                Gpu& gpu);
void mamba3_ring_settle_cuda(const RingSettleArgs& args, Gpu& gpu);
void mamba3_ring_clear_cuda(const RingCursorArgs& args, Gpu& gpu);
std::size_t rms_norm_backward_workspace_bytes_cuda(const RmsNormBackwardArgs& args);
void rms_norm_backward_cuda(const RmsNormBackwardArgs& args, Context& ctx);
void round_bf16_cuda(const RoundBf16Args& args, Context& ctx);
void rms_norm_cuda(const RmsNormArgs& args, Context& ctx);
void sample_rows_cuda(const SampleRowsArgs& args, Context& ctx);
void swiglu_backward_cuda(const SwigluBackwardArgs& args, Context& ctx);
void swiglu_cuda(const SwigluArgs& args, Context& ctx);

}  // namespace mamba3
