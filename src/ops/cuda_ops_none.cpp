// A build without CUDA.
#include "core/check.h"
#include "ops/ceilings/ceilings_cuda.h"
#include "ops/cuda_ops.h"

namespace mamba3 {
namespace {

[[noreturn]] void refuse() {
  fail(ErrorCode::kUnavailable, "this build has no GPU backend; expected a Context on the CPU");
}

}  // namespace

double measured_bandwidth_cuda(MemoryTraffic, Context&) {
  refuse();
}
double measured_gemm_rate_cuda(const GemmShape&, Compute, Context&) {
  refuse();
}
void adamw_cuda(const AdamwArgs&, Context&) {
  refuse();
}
std::size_t cross_entropy_workspace_bytes_cuda(const CrossEntropyArgs&, const Context&) {
  refuse();
}
void cross_entropy_cuda(const CrossEntropyArgs&, Context&) {
  refuse();
}
std::size_t embedding_backward_workspace_bytes_cuda(const EmbeddingBackwardArgs&) {
  refuse();
}
void embedding_backward_cuda(const EmbeddingBackwardArgs&, Context&) {
  refuse();
}
void embedding_cuda(const EmbeddingArgs&, Context&) {
  refuse();
}
bool fused_linear_takes_cuda(const FusedLinearArgs&, const Context&) {
  refuse();
}
void fused_linear_cuda(const FusedLinearArgs&, Context&) {
  refuse();
}
void gather_rows_cuda(const GatherRowsArgs&, Context&) {
  refuse();
}
void global_norm_cuda(const GlobalNormArgs&, Context&) {
  refuse();
}
std::size_t linear_backward_workspace_bytes_cuda(const LinearBackwardArgs&) {
  refuse();
}
void linear_backward_cuda(const LinearBackwardArgs&, Context&) {
  refuse();
}
void linear_cuda(const LinearArgs&, Context&) {
  refuse();
}
void mamba3_scan_backward_cuda(const Mamba3ScanBackwardArgs&, Context&) {
  refuse();
}
std::size_t mamba3_scan_backward_workspace_bytes_cuda(const Mamba3ScanBackwardArgs&,
                                                      const Context&) {
  refuse();
}
void mamba3_scan_cuda(const Mamba3ScanArgs&, Context&) {
  refuse();
}
void mamba3_step_cuda(const Mamba3StepArgs&, Context&) {
  refuse();
}
void mamba3_ring_step_cuda(const Mamba3StepArgs&, Context&) {
  refuse();
}
void mamba3_ring_advance_cuda(const RingCursorArgs&, Gpu&) {
  refuse();
}
void mamba3_ring_roll_back_cuda(const RingCursorArgs&, std::span<const std::int32_t>, Gpu&) {
  refuse();
}
void mamba3_ring_settle_cuda(const RingSettleArgs&, Gpu&) {
  refuse();
}
void mamba3_ring_clear_cuda(const RingCursorArgs&, Gpu&) {
  refuse();
}
std::size_t rms_norm_backward_workspace_bytes_cuda(const RmsNormBackwardArgs&) {
  refuse();
}
void rms_norm_backward_cuda(const RmsNormBackwardArgs&, Context&) {
  refuse();
}
void rms_norm_cuda(const RmsNormArgs&, Context&) {
  refuse();
}
void round_bf16_cuda(const RoundBf16Args&, Context&) {
  refuse();
}
void sample_rows_cuda(const SampleRowsArgs&, Context&) {
  refuse();
}
void swiglu_backward_cuda(const SwigluBackwardArgs&, Context&) {
  refuse();
}
void swiglu_cuda(const SwigluArgs&, Context&) {
  refuse();
}

}  // namespace mamba3
