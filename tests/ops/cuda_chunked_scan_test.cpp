// The scans in chunks on tensor cores, Hopper's own and that of every card: against the oracle, and
// against themselves.
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

// A layer, and whether it is scanned without the tuned kernels where a GPU has them.
struct ChunkedCase {
  Mamba3Dims dims;
  bool general;

  bool tuned() const {
    return !general && mamba3_scan_path(dims, gpu_info(0).compute_capability, true).tuned;
  }
  std::string name() const { return describe(dims) + (general ? "_mma" : ""); }
};

GpuRunner runner(const ChunkedCase& one, const ScanCase& data, std::int64_t padding = 3) {
  GpuRunner out(data, padding);
  out.with_bf16_products().with_general_kernels(one.general);
  return out;
}

// Cases without `general` are of shapes that Hopper has tuned kernels for.
#define SKIP_WITHOUT_CHUNKS(one) \
  SKIP_WITHOUT_GPU();            \
  if (!(one).general && !(one).tuned()) GTEST_SKIP() << "no GPU of compute capability 9.0 here"

#define SKIP_WITHOUT_PARTS(one) \
  SKIP_WITHOUT_CHUNKS(one);     \
  if ((one).general) GTEST_SKIP() << "parts are for the tuned kernels"

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

class CudaChunkedScan : public ::testing::TestWithParam<ChunkedCase> {};

TEST_P(CudaChunkedScan, IsNearTheOracle) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const ScanCase data(GetParam().dims,
                      {0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 131, 0, 257, 300},
                      41);
  for (const std::int64_t padding : {3, 4}) {
    expect_right(data, runner(GetParam(), data, padding).scan_on_gpu());
  }
}

TEST_P(CudaChunkedScan, HasThePhasesOfTheStep) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const ScanCase data(GetParam().dims, {67, 67}, 42);
  const GpuRun scanned = runner(GetParam(), data).scan_on_gpu();
  EXPECT_EQ(scanned.turns, GpuRunner(data, 3).step_on_gpu().turns);
}

// In bf16 come and go the same numbers, where they are such.
TEST_P(CudaChunkedScan, TakesAndGivesBf16) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  ScanCase data(GetParam().dims, {5, 130}, 50);
  const auto round = [](std::vector<float>& values) {
    for (float& v : values) v = to_float(to_bf16(v));
  };
  for (auto& in : data.inputs) {
    round(in.x);
    round(in.z);
  }
  GpuRun wide = runner(GetParam(), data).scan_on_gpu();
  const GpuRun narrow = runner(GetParam(), data).with_bf16_columns().scan_on_gpu();
  EXPECT_TRUE(narrow.clean);
  for (std::size_t i = 0; i < data.inputs.size(); ++i) {
    round(wide.y[i]);
    EXPECT_TRUE(same_bits(narrow.y[i], wide.y[i]));
    EXPECT_TRUE(same_bits(narrow.states[i].ssm, wide.states[i].ssm));
    EXPECT_TRUE(same_bits(narrow.states[i].v, wide.states[i].v));
  }
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
  const ScanCase data(GetParam().dims, {18, 5, 140}, 43);
  const GpuRun together = runner(GetParam(), data).scan_on_gpu();
  for (std::size_t i = 0; i < 3; ++i) {
    const ScanCase one = only(data, i);
    expect_same(runner(GetParam(), one).scan_on_gpu(), 0, together, i);
  }
}

// Heads of equal sequences are shared out over the multiprocessors: here more of them than there
// are, and fewer than twice as many, so that some are cut. A sequence of another length keeps them
// whole.
TEST_P(CudaChunkedScan, SharingOutChangesNoBit) {
  SKIP_WITHOUT_PARTS(GetParam());
  const std::int64_t equal = gpu_info(0).multiprocessors / GetParam().dims.heads + 4;
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(equal), 600);
  lengths.front() = 513;
  lengths.push_back(1);
  const ScanCase data(GetParam().dims, lengths, 52);
  ScanCase fewer = data;
  fewer.inputs.pop_back();
  fewer.starts.pop_back();
  const GpuRun whole = runner(GetParam(), data).scan_on_gpu();
  const GpuRun shared = runner(GetParam(), fewer).scan_on_gpu();
  EXPECT_TRUE(shared.clean);
  for (std::size_t i = 0; i < fewer.inputs.size(); ++i) expect_same(shared, i, whole, i);
}

TEST_P(CudaChunkedScan, ACutOnTheGridChangesNoBit) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const std::int64_t grid = kScanGridTokensCuda;
  const ScanCase data(GetParam().dims, {2 * grid + 9}, 44);
  const GpuRun whole = runner(GetParam(), data).scan_on_gpu();
  expect_same(runner(GetParam(), data).scan_on_gpu({grid, grid, 9}), 0, whole, 0);
  expect_same(runner(GetParam(), data).scan_on_gpu({2 * grid, 9}), 0, whole, 0);
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
  SKIP_WITHOUT_PARTS(GetParam());
  for (const auto& lengths : std::vector<std::vector<std::int64_t>>{{2125}, {70, 2049, 0}}) {
    const ScanCase data = parted(GetParam().dims, lengths, 45);
    expect_right(data, runner(GetParam(), data, 4).scan_on_gpu());
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
  const ChunkedCase one{dims, false};
  SKIP_WITHOUT_CHUNKS(one);
  const ScanCase data = parted(dims, {9077}, 46);
  expect_right(data, runner(one, data).scan_on_gpu());
}

TEST_P(CudaChunkedScan, PartsHaveThePhasesOfOneWalk) {
  SKIP_WITHOUT_PARTS(GetParam());
  const ScanCase data = parted(GetParam().dims, {2125, 100}, 47);
  const GpuRun parts = runner(GetParam(), data).scan_on_gpu();
  const GpuRun walk = runner(GetParam(), data).in_one_walk().scan_on_gpu();
  EXPECT_EQ(parts.turns, walk.turns);
  expect_same(parts, 1, walk, 1);  // too short for parts
  EXPECT_FALSE(same_bits(parts.y[0], walk.y[0])) << "there were no parts";
}

TEST_P(CudaChunkedScan, ANanReachesNoEarlierPart) {
  SKIP_WITHOUT_PARTS(GetParam());
  ScanCase data = parted(GetParam().dims, {2125}, 48);
  const GpuRun clean = runner(GetParam(), data).scan_on_gpu();
  const std::int64_t inner = data.dims.heads * data.dims.head_dim;
  const std::int64_t token = 1500, before = token / kScanGridTokensCuda * kScanGridTokensCuda;
  data.inputs[0].x[token * inner] = testing::kNan;
  const GpuRun got = runner(GetParam(), data).scan_on_gpu();
  EXPECT_TRUE(same_bits(got.y[0].data(), clean.y[0].data(), before * inner));
  EXPECT_TRUE(std::isnan(got.y[0][2124 * inner]));
}

// A chunk has at most 64 tokens.
TEST_P(CudaChunkedScan, ANanReachesNoEarlierChunkAndNoOtherHead) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  ScanCase data(GetParam().dims, {200}, 51);
  const GpuRun clean = runner(GetParam(), data).scan_on_gpu();
  const std::int64_t p = data.dims.head_dim, inner = data.dims.heads * p;
  const std::int64_t token = 150, before = token / 64 * 64;
  data.inputs[0].x[token * inner] = testing::kNan;
  const GpuRun got = runner(GetParam(), data).scan_on_gpu();
  EXPECT_TRUE(same_bits(got.y[0].data(), clean.y[0].data(), before * inner));
  for (std::int64_t t = 0; t < 200; ++t) {
    EXPECT_TRUE(same_bits(&got.y[0][t * inner + p], &clean.y[0][t * inner + p], inner - p));
  }
  EXPECT_TRUE(std::isnan(got.y[0][199 * inner]));
}

TEST_P(CudaChunkedScan, InOneWalkNothingChangesABit) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  const ScanCase data = parted(GetParam().dims, {2057, 300}, 49);
  const GpuRun whole = runner(GetParam(), data).in_one_walk().scan_on_gpu();
  const ScanCase one = only(data, 0);
  const auto alone = [&one](const std::vector<std::int64_t>& pieces) {
    return runner(GetParam(), one).in_one_walk().scan_on_gpu(pieces);
  };
  expect_same(alone({}), 0, whole, 0);
  expect_same(alone({1024, 1033}), 0, whole, 0);
}

// Decays are sums of integers: what leaves nothing of a state is far beyond what they count.
TEST_P(CudaChunkedScan, StatesThatAreForgottenAtOnce) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  ScanCase data(GetParam().dims, {41, 150}, 50);
  for (auto& in : data.inputs) {
    for (std::int64_t t = 3; t < in.tokens; t += 7) in.decay_raw[t * data.dims.heads] = 1e7f;
  }
  expect_right(data, runner(GetParam(), data).scan_on_gpu());
}

// The tuned kernels multiply a state where it has decayed far, which takes some chunks here.
TEST_P(CudaChunkedScan, StatesThatDecaySlowly) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  ScanCase data(GetParam().dims, {300, 77, 600}, 52);
  const float shift = data.dims.a_activation == AActivation::kSoftplus ? -2 : -9;
  for (auto& in : data.inputs) {
    for (float& v : in.decay_raw) v = 0.5f * v + shift;
  }
  expect_right(data, runner(GetParam(), data).scan_on_gpu());
}

TEST_P(CudaChunkedScan, ANanDecayReachesNothingBeforeItNorBeside) {
  SKIP_WITHOUT_CHUNKS(GetParam());
  ScanCase data(GetParam().dims, {40, 90, 33}, 51);
  const GpuRun clean = runner(GetParam(), data).scan_on_gpu();
  const std::int64_t inner = data.dims.heads * data.dims.head_dim, token = 37;
  data.inputs[1].decay_raw[token * data.dims.heads] = testing::kNan;
  const GpuRun got = runner(GetParam(), data).scan_on_gpu();
  expect_same(got, 0, clean, 0);
  expect_same(got, 2, clean, 2);
  EXPECT_TRUE(same_bits(got.y[1].data(), clean.y[1].data(), token * inner));
  EXPECT_TRUE(std::isnan(got.y[1][token * inner]));
  EXPECT_TRUE(std::isnan(got.y[1][89 * inner]));
  EXPECT_TRUE(std::isnan(got.states[1].ssm[0]));
}

std::vector<Mamba3Dims> tuned_dims() {
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
  // Rotations by fixed steps, and none.
  add(3, 64, 1, 1, 16);
  out.back().fixed_steps = true;
  add(2, 128, 1, 4, 64);
  out.back().fixed_steps = true;
  add(2, 64, 2, 1, 0);
  add(3, 128, 1, 2, 0);
  return out;
}

// n from 32 and p from 8 to 256, every rank; out-norm where the number of heads is odd.
std::vector<Mamba3Dims> other_dims() {
  std::vector<Mamba3Dims> out;
  const auto add = [&out](std::int64_t heads, std::int64_t head_dim, std::int64_t state,
                          std::int64_t groups, std::int64_t rank, bool rope_all) {
    Mamba3Dims d;
    d.heads = heads;
    d.head_dim = head_dim;
    d.state = state;
    d.groups = groups;
    d.rank = rank;
    d.mimo = rank > 1 || head_dim == 24;
    d.angles = rope_all ? state / 2 : state / 4;
    d.out_norm = heads % 2 == 1;
    d.a_activation = groups > 1 ? AActivation::kSoftplus : AActivation::kHeavyTail;
    out.push_back(d);
  };
  add(2, 16, 72, 1, 1, true);
  add(3, 80, 48, 1, 3, false);
  add(2, 64, 32, 2, 2, false);
  add(1, 256, 256, 1, 8, true);
  add(2, 256, 256, 1, 1, false);
  add(4, 24, 40, 2, 1, true);
  add(2, 128, 192, 1, 5, false);
  add(2, 72, 96, 1, 6, true);
  add(3, 8, 56, 1, 7, false);  // of one head a token has 8 numbers: too few for a fair plain run
  add(3, 160, 256, 3, 2, true);
  add(16, 8, 64, 1, 1, false);  // as state tracking has them
  return out;
}

std::vector<ChunkedCase> cases() {
  std::vector<ChunkedCase> out;
  for (const Mamba3Dims& dims : tuned_dims()) {
    out.push_back({dims, false});
    out.push_back({dims, true});
  }
  for (const Mamba3Dims& dims : other_dims()) out.push_back({dims, true});
  return out;
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaChunkedScan, ::testing::ValuesIn(cases()),
                         [](const auto& p) { return p.param.name(); });

}  // namespace
}  // namespace mamba3
