// mamba3_scan_backward on tensor cores: against the oracle, and for what its header promises.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "ops/mamba3_scan_backward/scan_backward_mma_cuda.h"
#include "scan_backward_expect.h"

namespace mamba3 {
namespace {

using testing::BackwardCase;
using testing::BackwardOptions;
using testing::BackwardRunner;
using testing::BackwardTypes;
using testing::describe;
using testing::expect_right;
using testing::Expected;
using testing::Gradients;
using testing::ParamGradients;
using testing::Random;

constexpr int kHopper = 90;
constexpr std::int64_t kPiece = 8;  // rows of bf16 begin on 16 bytes

BackwardOptions tuned(const std::vector<std::int64_t>& which = {}) {
  BackwardOptions out;
  out.which = which;
  out.gpu = true;
  out.types = BackwardTypes::kBf16Inputs;
  out.row_multiple = kPiece;
  return out;
}

void round(std::vector<float>& values) {
  for (float& v : values) v = to_float(to_bf16(v));
}

// Sequences whose z, x and grad_y are numbers of bf16.
BackwardCase rounded_case(const Mamba3Dims& dims, const std::vector<std::int64_t>& lengths,
                          std::uint64_t seed) {
  BackwardCase out(dims, lengths, seed);
  for (std::size_t i = 0; i < out.inputs.size(); ++i) {
    round(out.inputs[i].x);
    round(out.inputs[i].z);
    round(out.grad_y[i]);
  }
  return out;
}

Gradients gradients(const BackwardCase& data, const BackwardOptions& options = tuned()) {
  Gradients out{{}, ParamGradients(data.dims)};
  BackwardRunner runner(data, options);
  out.sequences = runner.run(out.params, [](const Mamba3ScanBackwardArgs& args) {
    EXPECT_TRUE(mamba3_scan_backward_takes_mma(args, kHopper));
  });
  EXPECT_TRUE(runner.clean());
  return out;
}

class CudaMmaScanBackward : public ::testing::TestWithParam<Mamba3Dims> {
 protected:
  void SetUp() override {
    SKIP_WITHOUT_GPU();
    if (gpu_info(0).compute_capability != kHopper) {
      GTEST_SKIP() << "no GPU of compute capability 9.0 here";
    }
  }
  std::int64_t chunk() const { return 64 / GetParam().rank; }

  void expect_near_the_oracle(const BackwardCase& data) const {
    const Expected expected(data, true);
    const Gradients got = gradients(data);
    expect_right(got.sequences, expected);
    expect_right(got.params, expected);
  }
};

TEST_P(CudaMmaScanBackward, IsNearTheOracleAtAwkwardLengths) {
  const std::int64_t c = chunk();
  expect_near_the_oracle(
      rounded_case(GetParam(), {0, 1, 2, 3, c - 1, c, 0, c + 1, 2 * c + 5, 3 * c}, 71));
}

TEST_P(CudaMmaScanBackward, LongRunIsNearTheOracle) {
  expect_near_the_oracle(rounded_case(GetParam(), {523}, 72));
}

// What decays leave nothing of, tokens that do nothing, and phases that turn far.
TEST_P(CudaMmaScanBackward, ExtremesAreNearTheOracle) {
  BackwardCase data = rounded_case(GetParam(), {150, 41}, 73);
  Random random(74);
  for (auto& in : data.inputs) {
    const auto draw = [&](std::vector<float>& to, const std::vector<float>& from) {
      for (float& v : to) {
        if (random.below(4) == 0) v = from[random.below(std::ssize(from))];
      }
    };
    draw(in.dt_raw, {-90, -30, 0, 3});
    draw(in.decay_raw, {-2e4f, -1, 0, 1000, 1e7f});
    draw(in.trap_raw, {-100, -30, 0, 30, 100});
    draw(in.angle_raw, {-8, 0, 0.3f, 50});
  }
  expect_near_the_oracle(data);
}

TEST_P(CudaMmaScanBackward, NeitherRepetitionNorPackingNorNeighboursChangeABit) {
  const BackwardCase data = rounded_case(GetParam(), {chunk() + 2, 1, 301, 0, 7}, 75);
  const Gradients all = gradients(data);
  const Gradients again = gradients(data);
  EXPECT_TRUE(again.params == all.params);
  ParamGradients one_by_one(data.dims);
  for (std::int64_t i = 0; i < 5; ++i) {
    const auto& expected = all.sequences[static_cast<std::size_t>(i)];
    EXPECT_TRUE(again.sequences[static_cast<std::size_t>(i)] == expected) << i;
    BackwardRunner runner(data, tuned({i}));
    EXPECT_TRUE(runner.run(one_by_one)[0] == expected) << i;
  }
  EXPECT_TRUE(one_by_one == all.params);
  const Gradients some = gradients(data, tuned({4, 3, 2}));
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(some.sequences[i] == all.sequences[4 - i]) << i;
}

// Sequences enough for chains of heads; a few are too long for them, and alone none has any.
TEST_P(CudaMmaScanBackward, ChainsOfHeadsChangeNoBit) {
  constexpr std::int64_t kPairs = 512;  // of a head and a sequence
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < kPairs / GetParam().heads; ++i) {
    lengths.push_back(i % 25 == 6 ? 3 * chunk() : chunk() + i % 9);
  }
  const BackwardCase data = rounded_case(GetParam(), lengths, 77);
  const Gradients all = gradients(data);
  EXPECT_TRUE(gradients(data).params == all.params);
  ParamGradients params(data.dims);
  for (const std::int64_t i : {std::int64_t{0}, std::int64_t{6}, std::ssize(lengths) - 1}) {
    BackwardRunner runner(data, tuned({i}));
    EXPECT_TRUE(runner.run(params)[0] == all.sequences[static_cast<std::size_t>(i)]) << i;
  }
}

TEST_P(CudaMmaScanBackward, RowsInBf16AreTheSameRoundedOnce) {
  const BackwardCase data = rounded_case(GetParam(), {chunk() + 3, 5}, 76);
  const Gradients wide = gradients(data);
  BackwardOptions options = tuned();
  options.types = BackwardTypes::kBf16;
  const Gradients narrow = gradients(data, options);
  EXPECT_TRUE(narrow.params == wide.params);
  for (std::size_t i = 0; i < data.inputs.size(); ++i) {
    auto expected = wide.sequences[i];
    round(expected.columns);
    EXPECT_TRUE(narrow.sequences[i] == expected) << i;
  }
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
    d.a_activation = groups > 1 ? AActivation::kSoftplus : AActivation::kHeavyTail;
    out.push_back(d);
  };
  add(4, 128, 1, 1, 32);
  add(2, 128, 1, 2, 32);
  add(4, 128, 1, 4, 32);
  add(3, 128, 3, 1, 64);
  add(4, 128, 2, 4, 64);
  add(3, 64, 1, 1, 16);
  add(8, 64, 2, 1, 32);
  add(1, 64, 1, 2, 12);
  add(4, 64, 2, 4, 32);
  // Rotations by fixed steps, and none.
  add(3, 64, 1, 1, 16);
  out.back().fixed_steps = true;
  add(2, 128, 1, 4, 64);
  out.back().fixed_steps = true;
  add(4, 64, 2, 1, 0);
  add(2, 128, 1, 2, 0);
  return out;
}

INSTANTIATE_TEST_SUITE_P(Sizes, CudaMmaScanBackward, ::testing::ValuesIn(tuned_dims()),
                         [](const auto& each) { return describe(each.param); });

}  // namespace
}  // namespace mamba3
