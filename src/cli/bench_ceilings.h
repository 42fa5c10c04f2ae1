// The ceilings of one run: what the memory and the matrix products of this machine do at best.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "cli/bench_report.h"
#include "ops/ceilings/ceilings.h"

namespace mamba3::cli {

// Bytes that a call reads and writes.
struct Traffic {
  double read = 0;
  double written = 0;
  double bytes() const { return read + written; }
};

class MachineCeilings {
 public:
  MachineCeilings(Compute compute, Context& ctx);

  // As long as moving it takes at least: as much as is both read and written at the rate of a copy
  // or of changes in place, whichever is faster, the rest at that of reading or writing alone.
  double memory_seconds(const Traffic& traffic) const;
  // At the rate of a large product.
  double product_seconds(double flops) const { return flops / gemm_; }
  // Of oneDNN, or on a GPU of cuBLASLt, on exactly this product; measured once.
  double product_seconds(const GemmShape& shape);

  // Rows "ceiling/...".
  void add_rows(BenchReport& report);

 private:
  Context& ctx_;
  Compute compute_;
  double read_, write_, copy_, update_;  // bytes/s
  GemmShape gemm_shape_;
  double gemm_;  // FLOP/s
  std::map<std::string, double> products_;
};

}  // namespace mamba3::cli
