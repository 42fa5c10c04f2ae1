#include "cli/bench_ceilings.h"

#include <algorithm>

#include "core/check.h"

namespace mamba3::cli {
namespace {

GemmShape large_product(const Context& ctx) {
  const std::int64_t edge = ctx.gpu() ? 8192 : 2048;
  return {edge, edge, edge};
}

std::string shape_name(const GemmShape& shape) {
  return str(shape.m, "x", shape.n, "x", shape.k);
}

}  // namespace

MachineCeilings::MachineCeilings(Compute compute, Context& ctx)
    : ctx_(ctx),
      compute_(compute),
      read_(measured_bandwidth(MemoryTraffic::kRead, ctx)),
      write_(measured_bandwidth(MemoryTraffic::kWrite, ctx)),
      copy_(measured_bandwidth(MemoryTraffic::kCopy, ctx)),
      update_(measured_bandwidth(MemoryTraffic::kUpdate, ctx)),
      gemm_shape_(large_product(ctx)),
      gemm_(measured_gemm_rate(gemm_shape_, compute, ctx)) {}

double MachineCeilings::memory_seconds(const Traffic& traffic) const {
  const double both = std::min(traffic.read, traffic.written);
  return 2 * both / std::max(copy_, update_) + (traffic.read - both) / read_ +
         (traffic.written - both) / write_;
}

double MachineCeilings::product_seconds(const GemmShape& shape) {
  double& rate = products_[shape_name(shape)];
  if (rate == 0) rate = measured_gemm_rate(shape, compute_, ctx_);
  return shape.flops() / rate;
}

void MachineCeilings::add_rows(BenchReport& report) {
  const auto add = [&](const std::string& name, double rate, const char* unit) {
    BenchRow row;
    row.name = "ceiling/" + name;
    row.value = 1e-9 * rate;
    row.unit = unit;
    report.add(row);
  };
  add("read", read_, "GB/s");
  add("write", write_, "GB/s");
  add("copy", copy_, "GB/s");
  add("update", update_, "GB/s");
  add("gemm=" + shape_name(gemm_shape_), gemm_, "GFLOP/s");
  if (!ctx_.gpu()) return;
  constexpr GemmShape kLongPrompts{65536, 8672, 2048};  // in_proj of siso-1.5b
  add("gemm=" + shape_name(kLongPrompts), kLongPrompts.flops() / product_seconds(kLongPrompts),
      "GFLOP/s");
}

}  // namespace mamba3::cli
