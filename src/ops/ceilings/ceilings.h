// What this machine can do at best, measured with the threads of a Context: the ceilings that
// benchmarks compare with.
#pragma once

#include <cstdint>

#include "core/memory.h"
#include "mamba3/context.h"
#include "ops/ceilings/read_streams.h"
#include "ops/linear/linear.h"

namespace mamba3 {

// Bytes per second that all threads (or a GPU) together read from memory, from a block far larger
// than the caches, in the fastest of a few ways of reading.
class ReadBandwidth {
 public:
  explicit ReadBandwidth(Context& ctx);  // finds the fastest way
  // One more measurement. The speed of a shared machine changes by the second, so what is compared
  // with it is to be measured in turns with it.
  double measure();

 private:
  double read_once();

  Context& ctx_;
  Memory block_;  // none on a GPU
  ReadPattern pattern_{};
};

// The fastest of a few.
double measured_read_bandwidth(Context& ctx);

// What is done with memory. kCopy goes from one block to another, kUpdate changes one in place:
// both count every byte twice, as read and as written.
enum class MemoryTraffic : std::uint8_t { kRead, kWrite, kCopy, kUpdate };

// Bytes per second that all threads (or a GPU) together move to or from memory, in blocks far
// larger than the caches; the fastest of a few.
double measured_bandwidth(MemoryTraffic traffic, Context& ctx);

// y [m, n] = x [m, k] w [n, k]^T
struct GemmShape {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  double flops() const {
    return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  }
};

// FLOP/s of oneDNN (on a GPU of cuBLASLt) at its best: weights in the layout it chooses itself,
// outputs divided among the threads, random numbers, the fastest of a few runs.
double measured_gemm_rate(const GemmShape& shape, Compute compute, Context& ctx);

}  // namespace mamba3
