// mamba3_step and mamba3_scan on a GPU against the CPU and the oracle, and against each other.
// Skipped where there is no GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/tolerance.h"
#include "gpu_scan_case.h"

namespace mamba3 {
namespace {

using testing::all;
using testing::awkward_dims;
using testing::describe;
using testing::GpuRun;
using testing::GpuRunner;
using testing::kClose;
using testing::ScanCase;
using testing::widen;

// Two doubles that differ in their last place may round to neighbouring turns.
constexpr std::int32_t kCloseTurns = 2;

// As near to the truth as kClose, or nearly as near as the CPU: a norm over few values makes much
// of a rounding.
void expect_close(const char* name, const std::vector<float>& got, const std::vector<float>& cpu,
                  const std::vector<double>& truth) {
  const double error = largest_error(all(got), all(truth), ErrorMetric::kRelative);
  const double cpu_error = largest_error(all(cpu), all(truth), ErrorMetric::kRelative);
  EXPECT_LE(error, std::max(kClose, 4 * cpu_error)) << name << ", the CPU has " << cpu_error;
}

void expect_turns(const std::vector<std::uint32_t>& got, const std::vector<std::uint32_t>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_LE(std::abs(static_cast<std::int32_t>(got[i] - want[i])), kCloseTurns) << i;
  }
}

void expect_right(const ScanCase& data, const GpuRun& got, const GpuRun& cpu) {
  EXPECT_TRUE(got.clean);
  for (std::size_t i = 0; i < data.inputs.size(); ++i) {
    SCOPED_TRACE("sequence " + std::to_string(i));
    Mamba3RefState<double> truth = widen(data.starts[i]);
    const auto y = mamba3_scan_ref(widen(data.inputs[i]), truth);
    expect_close("y", got.y[i], cpu.y[i], y);
    expect_close("ssm", got.states[i].ssm, cpu.states[i].ssm, truth.ssm);
    expect_close("k", got.states[i].k, cpu.states[i].k, truth.k);
    EXPECT_TRUE(same_bits(got.states[i].v, cpu.states[i].v));
    expect_turns(got.turns[i], cpu.turns[i]);
  }
}

class CudaMamba3 : public ::testing::TestWithParam<Mamba3Dims> {};

TEST_P(CudaMamba3, StepsAsTheCpu) {
  SKIP_WITHOUT_GPU();
  const ScanCase data(GetParam(), {3, 3, 3, 3, 3}, 21);
  for (const std::int64_t padding : {3, 4}) {
    const GpuRun got = GpuRunner(data, padding).step_on_gpu();
    expect_right(data, got, GpuRunner(data, padding).step_on_cpu());
  }
}

TEST_P(CudaMamba3, ScansAsTheCpu) {
  SKIP_WITHOUT_GPU();
  const ScanCase data(GetParam(), {0, 1, 37, 2, 0, 16, 70}, 22);
  for (const std::int64_t padding : {3, 4}) {
    const GpuRun got = GpuRunner(data, padding).scan_on_gpu();
    expect_right(data, got, GpuRunner(data, padding).scan_on_cpu());
  }
}

TEST_P(CudaMamba3, ScanEqualsAsManySteps) {
  SKIP_WITHOUT_GPU();
  const ScanCase data(GetParam(), {35, 35}, 23);
  const GpuRun scanned = GpuRunner(data, 3).scan_on_gpu();
  const GpuRun stepped = GpuRunner(data, 3).step_on_gpu();
  EXPECT_EQ(scanned.turns, stepped.turns);
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(same_bits(scanned.states[i].k, stepped.states[i].k));
    EXPECT_TRUE(same_bits(scanned.states[i].v, stepped.states[i].v));
  }
  expect_right(data, scanned, stepped);
}

TEST_P(CudaMamba3, NeighboursChangeNoBit) {
  SKIP_WITHOUT_GPU();
  const ScanCase data(GetParam(), {18, 5, 40}, 24);
  const GpuRun together = GpuRunner(data, 3).scan_on_gpu();
  for (std::size_t i = 0; i < 3; ++i) {
    ScanCase one = data;
    one.inputs = {data.inputs[i]};
    one.starts = {data.starts[i]};
    const GpuRun alone = GpuRunner(one, 3).scan_on_gpu();
    EXPECT_TRUE(same_bits(alone.y[0], together.y[i]));
    EXPECT_TRUE(same_bits(alone.states[0].ssm, together.states[i].ssm));
    EXPECT_TRUE(same_bits(alone.states[0].k, together.states[i].k));
    EXPECT_EQ(alone.turns[0], together.turns[i]);
  }
}

std::vector<Mamba3Dims> cuda_dims() {
  std::vector<Mamba3Dims> out = awkward_dims();
  Mamba3Dims largest;
  largest.heads = 2;
  largest.head_dim = 256;
  largest.state = 256;
  largest.angles = 128;
  out.push_back(largest);
  largest.mimo = largest.out_norm = true;
  largest.rank = 8;
  out.push_back(largest);
  largest.head_dim = 65;
  largest.state = 130;
  largest.angles = 65;
  largest.rank = 3;
  largest.out_norm = false;
  out.push_back(largest);
  return out;
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaMamba3, ::testing::ValuesIn(cuda_dims()),
                         [](const auto& p) { return describe(p.param); });

// Steps so large that whole turns are taken off before they are counted in units.
TEST(CudaMamba3Phases, LargeStepsMoveAsOnTheCpu) {
  SKIP_WITHOUT_GPU();
  Mamba3Dims dims;
  dims.heads = 2;
  dims.head_dim = 3;
  dims.state = 8;
  dims.angles = 4;
  ScanCase data(dims, {3}, 26);
  for (float& v : data.inputs[0].dt_raw) v = 3e6f;
  const GpuRun want = GpuRunner(data, 3).step_on_cpu();
  expect_turns(GpuRunner(data, 3).step_on_gpu().turns[0], want.turns[0]);
  expect_turns(GpuRunner(data, 3).scan_on_gpu().turns[0], want.turns[0]);
}

TEST(CudaMamba3Phases, ANanAngleReachesTheState) {
  SKIP_WITHOUT_GPU();
  Mamba3Dims dims;
  dims.heads = 2;
  dims.head_dim = 3;
  dims.state = 8;
  dims.angles = 3;
  ScanCase data(dims, {3}, 25);
  data.inputs[0].angle_raw[4] = kNan;
  const GpuRun want = GpuRunner(data, 3).step_on_cpu();
  for (const GpuRun& got : {GpuRunner(data, 3).step_on_gpu(), GpuRunner(data, 3).scan_on_gpu()}) {
    for (std::size_t i = 0; i < want.y[0].size(); ++i) {
      EXPECT_TRUE(same_kind(got.y[0][i], want.y[0][i])) << i;
    }
    for (std::size_t i = 0; i < want.states[0].ssm.size(); ++i) {
      EXPECT_TRUE(same_kind(got.states[0].ssm[i], want.states[0].ssm[i])) << i;
    }
    expect_turns(got.turns[0], want.turns[0]);
  }
}

}  // namespace
}  // namespace mamba3
