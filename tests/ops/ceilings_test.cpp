#include "ops/ceilings/ceilings.h"

#include <numeric>

#include "ops/ceilings/read_streams.h"
#include "ops/op_test_helpers.h"

namespace mamba3 {
namespace {

TEST(Ceilings, ReadStreamsReadsEveryWord) {
  for_each_target([] {
    std::vector<std::uint64_t> words(4096 / sizeof(std::uint64_t));
    std::iota(words.begin(), words.end(), std::uint64_t{1} << 40);
    for (const ReadPattern& pattern : kReadPatterns) {
      EXPECT_EQ(read_streams(reinterpret_cast<const std::byte*>(words.data()), 4096, pattern),
                std::accumulate(words.begin(), words.end(), std::uint64_t{0}));
    }
  });
}

TEST(Ceilings, RatesArePlausible) {
  Context ctx(with_threads(2));
  EXPECT_GT(measured_read_bandwidth(ctx), 1e8);
  EXPECT_LT(measured_read_bandwidth(ctx), 1e14);
  for (const MemoryTraffic traffic :
       {MemoryTraffic::kWrite, MemoryTraffic::kCopy, MemoryTraffic::kUpdate}) {
    EXPECT_GT(measured_bandwidth(traffic, ctx), 1e8);
    EXPECT_LT(measured_bandwidth(traffic, ctx), 1e14);
  }
  for (const Compute compute : {Compute::kF32, Compute::kBf16}) {
    EXPECT_GT(measured_gemm_rate({33, 70, 65}, compute, ctx), 1e6);
    EXPECT_LT(measured_gemm_rate({33, 70, 65}, compute, ctx), 1e15);
  }
}

}  // namespace
}  // namespace mamba3
