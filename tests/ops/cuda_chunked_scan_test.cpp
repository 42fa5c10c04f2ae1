// The scan in chunks on Hopper's tensor cores: against the oracle, and against itself.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "core/tolerance.h"
#include "gpu_scan_case.h"

namespace mamba3 {
namespace {

using testing::all;
using testing::describe;
using testing::GpuRun;
using testing::GpuRunner;
using testing::ScanCase;
using testing::widen;

// A GPU on which the layer is scanned in chunks.
bool chunks(const Mamba3Dims& dims) {
  return gpu_count() > 0 && mamba3_scan_takes_bf16(dims, Context(testing::on_gpu()));
}

#define SKIP_WITHOUT_CHUNKS(dims) \
  if (!chunks(dims)) GTEST_SKIP() << "no GPU of compute capability 9.0 here"

void expect_within(const char* name, const std::vector<float>& got, const std::vector<float>& naive,
                   const std::vector<double>& truth, ErrorMetric metric = ErrorMetric::kRelative) {
  const Comparison c = compare(all(got), all(naive), all(truth), kBf16Rounding, metric);
  EXPECT_TRUE(c.ok) << name << " is off by " << c.error << ", a plain run by " << c.naive_error
                    << ", allowed are " << c.bound;
}

void expect_right(const ScanCase& data, const GpuRun& got) {
  EXPECT_TRUE(got.clean);
  for (std::size_t i = 0; i < data.inputs.size(); ++i) {
    SCOPED_TRACE("sequence " + std::to_string(i) + " of " + std::to_string(data.inputs[i].tokens));
    Mamba3RefState<double> truth = widen(data.starts[i]);
    const auto y = mamba3_scan_ref(widen(data.inputs[i]), truth);
    Mamba3RefInputs<float> rounded = data.inputs[i];
    rounded.bf16_products = true;
    Mamba3RefState<float> naive = data.starts[i];
    const auto naive_y = mamba3_scan_ref(rounded, naive);
    expect_within("y", got.y[i], naive_y, y);
    expect_within("ssm", got.states[i].ssm, naive.ssm, truth.ssm);
    expect_within("k", got.states[i].k, naive.k, truth.k);
    expect_within("v", got.states[i].v, naive.v, truth.v);
    expect_within("angle", got.states[i].angle, naive.angle, truth.angle, ErrorMetric::kCircle);
  }
}

class CudaChunkedScan : public ::testing::TestWithParam<Mamba3Dims> {};

TEST_P(CudaChunkedScan, IsNearTheOracle) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const ScanCase data(GetParam(), {0, 1, 15, 16, 17, 63, 64, 65, 131, 0, 257, 300}, 41);
  for (const std::int64_t padding : {3, 4}) {
    expect_right(data, GpuRunner(data, padding).with_bf16_products().scan_on_gpu());
  }
}

TEST_P(CudaChunkedScan, HasThePhasesOfTheStep) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const ScanCase data(GetParam(), {67, 67}, 42);
  const GpuRun scanned = GpuRunner(data, 3).with_bf16_products().scan_on_gpu();
  EXPECT_EQ(scanned.turns, GpuRunner(data, 3).step_on_gpu().turns);
}

void expect_same(const GpuRun& a, std::size_t i, const GpuRun& b, std::size_t j) {
  EXPECT_TRUE(same_bits(a.y[i], b.y[j]));
  EXPECT_TRUE(same_bits(a.states[i].ssm, b.states[j].ssm));
  EXPECT_TRUE(same_bits(a.states[i].k, b.states[j].k));
  EXPECT_TRUE(same_bits(a.states[i].v, b.states[j].v));
  EXPECT_EQ(a.turns[i], b.turns[j]);
}

ScanCase only(const ScanCase& data, std::size_t i) {
  ScanCase one = data;
  one.inputs = {data.inputs[i]};
  one.starts = {data.starts[i]};
  return one;
}

TEST_P(CudaChunkedScan, NeighboursChangeNoBit) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const ScanCase data(GetParam(), {18, 5, 140}, 43);
  const GpuRun together = GpuRunner(data, 3).with_bf16_products().scan_on_gpu();
  for (std::size_t i = 0; i < 3; ++i) {
    const ScanCase one = only(data, i);
    expect_same(GpuRunner(one, 3).with_bf16_products().scan_on_gpu(), 0, together, i);
  }
}

TEST_P(CudaChunkedScan, ACutOnTheGridChangesNoBit) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const std::int64_t grid = kScanGridTokensCuda;
  const ScanCase data(GetParam(), {2 * grid + 9}, 44);
  const GpuRun whole = GpuRunner(data, 3).with_bf16_products().scan_on_gpu();
  expect_same(GpuRunner(data, 3).with_bf16_products().scan_on_gpu({grid, grid, 9}), 0, whole, 0);
  expect_same(GpuRunner(data, 3).with_bf16_products().scan_on_gpu({2 * grid, 9}), 0, whole, 0);
}

// Long enough to be walked in parts. States last, and tokens at the ends of parts count for much.
ScanCase parted(const Mamba3Dims& dims, const std::vector<std::int64_t>& lengths,
                std::uint64_t seed) {
  ScanCase data(dims, lengths, seed);
  for (auto& in : data.inputs) {
    for (float& v : in.decay_raw)
      v = 0.2f * v - (dims.a_activation == AActivation::kSoftplus ? 6 : 300);
    const std::int64_t inner = dims.heads * dims.head_dim;
    for (std::int64_t t = kScanGridTokensCuda - 1; t < in.tokens; t += kScanGridTokensCuda) {
      for (std::int64_t i = 0; i < inner; ++i) in.x[t * inner + i] *= 16;
    }
  }
  return data;
}

TEST_P(CudaChunkedScan, InPartsIsNearTheOracle) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  for (const auto& lengths : std::vector<std::vector<std::int64_t>>{{2125}, {70, 2049, 0}}) {
    const ScanCase data = parted(GetParam(), lengths, 45);
    expect_right(data, GpuRunner(data, 4).with_bf16_products().scan_on_gpu());
  }
}

// A long sequence has parts of several sections.
TEST(CudaPartedScan, IsNearTheOracleInSections) {
  Mamba3Dims dims;
  dims.heads = 1;
  dims.head_dim = dims.state = 64;
  dims.rank = 1;
  dims.groups = 1;
  dims.angles = 16;
  SKIP_WITHOUT_CHUNKS(dims);
  const ScanCase data = parted(dims, {9077}, 46);
  expect_right(data, GpuRunner(data, 3).with_bf16_products().scan_on_gpu());
}

TEST_P(CudaChunkedScan, PartsHaveThePhasesOfOneWalk) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const ScanCase data = parted(GetParam(), {2125, 100}, 47);
  const GpuRun parts = GpuRunner(data, 3).with_bf16_products().scan_on_gpu();
  const GpuRun walk = GpuRunner(data, 3).with_bf16_products().in_one_walk().scan_on_gpu();
  EXPECT_EQ(parts.turns, walk.turns);
  expect_same(parts, 1, walk, 1);  // too short for parts
  EXPECT_FALSE(same_bits(parts.y[0], walk.y[0])) << "there were no parts";
}

TEST_P(CudaChunkedScan, ANanReachesNoEarlierPart) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  ScanCase data = parted(GetParam(), {2125}, 48);
  const GpuRun clean = GpuRunner(data, 3).with_bf16_products().scan_on_gpu();
  const std::int64_t inner = data.dims.heads * data.dims.head_dim;
  const std::int64_t token = 1500, before = token / kScanGridTokensCuda * kScanGridTokensCuda;
  data.inputs[0].x[token * inner] = testing::kNan;
  const GpuRun got = GpuRunner(data, 3).with_bf16_products().scan_on_gpu();
  EXPECT_TRUE(same_bits(got.y[0].data(), clean.y[0].data(), before * inner));
  EXPECT_TRUE(std::isnan(got.y[0][2124 * inner]));
}

TEST_P(CudaChunkedScan, InOneWalkNothingChangesABit) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const ScanCase data = parted(GetParam(), {2057, 300}, 49);
  const GpuRun whole = GpuRunner(data, 3).with_bf16_products().in_one_walk().scan_on_gpu();
  const ScanCase one = only(data, 0);
  const auto alone = [&one](const std::vector<std::int64_t>& pieces) {
    return GpuRunner(one, 3).with_bf16_products().in_one_walk().scan_on_gpu(pieces);
  };
  expect_same(alone({}), 0, whole, 0);
  expect_same(alone({1024, 1033}), 0, whole, 0);
}

// Decays are sums of integers: what leaves nothing of a state is far beyond what they count.
TEST_P(CudaChunkedScan, StatesThatAreForgottenAtOnce) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  ScanCase data(GetParam(), {41, 150}, 50);
  for (auto& in : data.inputs) {
    for (std::int64_t t = 3; t < in.tokens; t += 7) in.decay_raw[t * data.dims.heads] = 1e7f;
  }
  expect_right(data, GpuRunner(data, 3).with_bf16_products().scan_on_gpu());
}

TEST_P(CudaChunkedScan, ANanDecayReachesNothingBeforeItNorBeside) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  ScanCase data(GetParam(), {40, 90, 33}, 51);
  const GpuRun clean = GpuRunner(data, 3).with_bf16_products().scan_on_gpu();
  const std::int64_t inner = data.dims.heads * data.dims.head_dim, token = 37;
  data.inputs[1].decay_raw[token * data.dims.heads] = testing::kNan;
  const GpuRun got = GpuRunner(data, 3).with_bf16_products().scan_on_gpu();
  expect_same(got, 0, clean, 0);
  expect_same(got, 2, clean, 2);
  EXPECT_TRUE(same_bits(got.y[1].data(), clean.y[1].data(), token * inner));
  EXPECT_TRUE(std::isnan(got.y[1][token * inner]));
  EXPECT_TRUE(std::isnan(got.y[1][89 * inner]));
  EXPECT_TRUE(std::isnan(got.states[1].ssm[0]));
}

std::vector<Mamba3Dims> chunked_dims() {
  std::vector<Mamba3Dims> out;
  const auto add = [&out](std::int64_t heads, std::int64_t state, std::int64_t groups,
                          std::int64_t rank, std::int64_t angles) {
    Mamba3Dims d;
    d.heads = heads;
    d.head_dim = 64;
    d.state = state;
    d.groups = groups;
    d.rank = rank;
    d.mimo = rank > 1;
    d.angles = angles;
    d.out_norm = heads % 2 == 1;
    d.a_activation = groups > 1 ? AActivation::kSoftplus : AActivation::kHeavyTail;
    out.push_back(d);
  };
  add(2, 128, 1, 1, 32);
  add(2, 128, 1, 4, 32);
  add(2, 128, 1, 2, 32);
  add(3, 128, 3, 1, 64);
  add(3, 128, 1, 4, 64);
  add(4, 64, 2, 1, 16);
  add(4, 64, 2, 4, 32);
  add(1, 64, 1, 2, 16);
  return out;
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaChunkedScan, ::testing::ValuesIn(chunked_dims()),
                         [](const auto& p) { return describe(p.param); });

}  // namespace
}  // namespace mamba3
