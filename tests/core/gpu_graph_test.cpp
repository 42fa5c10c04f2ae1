// Recorded work of a GPU's stream. Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <vector>

#include "core/gpu.h"
#include "core/memory.h"
#include "mamba3/error.h"

namespace mamba3 {
namespace {

TEST(CudaGraph, DoesAtEachLaunchWhatWasRecordedOnce) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  const auto gpu = Gpu::open(0);
  std::vector<int> from = {1, 2, 3, 4}, out(4);
  const Memory a = allocate_memory(16, gpu), b = allocate_memory(16, gpu);
  gpu->copy_in(a.get(), from.data(), 16);
  gpu->zero(b.get(), 16);
  const auto graph = GpuGraph::record(gpu, [&] { gpu->copy(b.get(), a.get(), 16); });
  gpu->copy_out(out.data(), b.get(), 16);
  EXPECT_EQ(out, std::vector<int>(4)) << "recording does nothing";
  for (int i = 0; i < 2; ++i) {
    from[i] = 10 + i;
    gpu->copy_in(a.get(), from.data(), 16);
    graph->launch();
    gpu->copy_out(out.data(), b.get(), 16);
    EXPECT_EQ(out, from);
  }
}

TEST(CudaGraph, AFailureWhileRecordingLeavesTheStreamUsable) {
  if (gpu_count() == 0) GTEST_SKIP() << "no GPU";
  const auto gpu = Gpu::open(0);
  EXPECT_THROW(GpuGraph::record(gpu, [&] { throw Error(ErrorCode::kBadInput, "on purpose"); }),
               Error);
  std::vector<int> from = {5}, out(1);
  const Memory a = allocate_memory(16, gpu);
  gpu->copy_in(a.get(), from.data(), 4);
  gpu->copy_out(out.data(), a.get(), 4);
  EXPECT_EQ(out, from);
}

}  // namespace
}  // namespace mamba3
