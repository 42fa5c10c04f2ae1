// The ops on a GPU: checked arguments in, everything they point at in the GPU's memory, ids, slots
// and cu_seqlens too. They return when their kernels are in the Context's stream. Builds without
// CUDA have stand-ins (cuda_ops_none.cpp) that are never reached: such a build opens no GPU.
#pragma once

#include "ops/embedding/embedding.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/linear/linear.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_step.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/sampling/sample_rows.h"
#include "ops/swiglu/swiglu.h"

namespace mamba3 {

void embedding_cuda(const EmbeddingArgs& args, Context& ctx);
void gather_rows_cuda(const GatherRowsArgs& args, Context& ctx);
void linear_cuda(const LinearArgs& args, Context& ctx);
void mamba3_scan_cuda(const Mamba3ScanArgs& args, Context& ctx);
void mamba3_step_cuda(const Mamba3StepArgs& args, Context& ctx);
void rms_norm_cuda(const RmsNormArgs& args, Context& ctx);
void sample_rows_cuda(const SampleRowsArgs& args, Context& ctx);
void swiglu_cuda(const SwigluArgs& args, Context& ctx);

}  // namespace mamba3
