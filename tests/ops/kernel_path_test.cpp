// Which shapes the tuned kernels of a GPU are for.
#include "ops/mamba3_common/kernel_path.h"

#include <gtest/gtest.h>

#include "mamba3/error.h"
#include "ops/mamba3_scan/mamba3_scan.h"
#include "ops/mamba3_step/mamba3_step.h"

namespace mamba3 {
namespace {

Mamba3Dims tuned_dims() {
  Mamba3Dims dims;
  dims.heads = 4;
  dims.head_dim = 64;
  dims.state = 128;
  dims.rank = 4;
  dims.mimo = true;
  dims.angles = 32;
  return dims;
}

// Both ops, on an H100.
void expect_general(const Mamba3Dims& dims, const std::string& because) {
  for (const KernelPath& path : {mamba3_scan_path(dims, 90, true), mamba3_step_path(dims, 90)}) {
    EXPECT_FALSE(path.tuned);
    EXPECT_NE(path.because.find(because), std::string::npos) << path.because;
  }
}

TEST(KernelPath, TunedForTheAuthorsShapesOnHopper) {
  for (const std::int64_t state : {64, 128}) {
    for (const std::int64_t rank : {1, 2, 4}) {
      Mamba3Dims dims = tuned_dims();
      dims.state = state;
      dims.rank = rank;
      dims.mimo = rank > 1;
      EXPECT_TRUE(mamba3_scan_path(dims, 90, true).tuned);
      EXPECT_TRUE(mamba3_step_path(dims, 90).tuned);
    }
  }
  EXPECT_EQ(mamba3_scan_path(tuned_dims(), 90, true).because, "n = 128, p = 64, r = 4");
}

TEST(KernelPath, OtherShapesAndCardsAreGeneralAndSayWhy) {
  Mamba3Dims dims = tuned_dims();
  dims.state = 96;
  expect_general(dims, "n = 96");
  dims = tuned_dims();
  dims.head_dim = 128;
  expect_general(dims, "p = 128");
  dims = tuned_dims();
  dims.rank = 3;
  expect_general(dims, "r = 3");
  for (const int capability : {80, 89, 100}) {
    EXPECT_FALSE(mamba3_scan_path(tuned_dims(), capability, true).tuned) << capability;
    EXPECT_FALSE(mamba3_step_path(tuned_dims(), capability).tuned) << capability;
  }
  EXPECT_NE(mamba3_scan_path(tuned_dims(), 89, true).because.find("8.9"), std::string::npos);
}

// What the kernels of a GPU hold in registers bounds n and p; both are refused with the number.
TEST(KernelPath, NoneForWhatIsTooLargeForAnyKernel) {
  for (const auto part : {&Mamba3Dims::state, &Mamba3Dims::head_dim}) {
    Mamba3Dims dims = tuned_dims();
    dims.*part = 256;
    EXPECT_FALSE(general_for(dims).none);
    EXPECT_NO_THROW(check_gpu_takes(dims));
    EXPECT_FALSE(mamba3_scan_path(dims, 90, true).none);
    dims.*part = 258;
    for (const int capability : {80, 90}) {
      for (const bool bf16 : {false, true}) {
        EXPECT_TRUE(mamba3_scan_path(dims, capability, bf16).none);
      }
      EXPECT_TRUE(mamba3_step_path(dims, capability).none);
      EXPECT_FALSE(mamba3_step_path(dims, capability).tuned);
    }
    try {
      check_gpu_takes(dims);
      ADD_FAILURE() << "258 is taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnavailable);
      EXPECT_NE(std::string(error.what()).find("= 258"), std::string::npos) << error.what();
    }
  }
}

TEST(KernelPath, OnlyStepsDependOnWhatRotates) {
  const auto expect_general_step = [](const Mamba3Dims& dims, const std::string& because) {
    const KernelPath step = mamba3_step_path(dims, 90);
    EXPECT_FALSE(step.tuned);
    EXPECT_NE(step.because.find(because), std::string::npos) << step.because;
    EXPECT_TRUE(mamba3_scan_path(dims, 90, true).tuned);
  };
  Mamba3Dims dims = tuned_dims();
  dims.fixed_steps = true;
  expect_general_step(dims, "fixed steps");
  dims = tuned_dims();
  dims.angles = 0;
  expect_general_step(dims, "no rotation");
}

TEST(KernelPath, StepsWithOutNormOrOddAnglesAreGeneral) {
  Mamba3Dims dims = tuned_dims();
  dims.out_norm = true;
  EXPECT_FALSE(mamba3_step_path(dims, 90).tuned);
  EXPECT_TRUE(mamba3_scan_path(dims, 90, true).tuned);
  dims = tuned_dims();
  dims.angles = 30;
  EXPECT_FALSE(mamba3_step_path(dims, 90).tuned);
}

TEST(KernelPath, ScansInBf16AreOnTensorCoresWhereNAndPAreMultiplesOfEight) {
  for (const int capability : {80, 86, 90, 120}) {
    Mamba3Dims dims = tuned_dims();
    EXPECT_EQ(mamba3_scan_path(dims, capability, true).mma, capability != 90);
    EXPECT_FALSE(mamba3_scan_path(dims, capability, false).mma);
    dims.rank = 7;
    for (const auto part : {&Mamba3Dims::state, &Mamba3Dims::head_dim}) {
      for (const std::int64_t extent : {32, 40, 80, 256}) {
        dims.*part = extent;
        EXPECT_TRUE(mamba3_scan_path(dims, capability, true).mma) << extent;
      }
      Mamba3Dims odd = dims;
      odd.*part = 36;
      EXPECT_FALSE(mamba3_scan_path(odd, capability, true).mma);
    }
    dims.state = 24;
    EXPECT_FALSE(mamba3_scan_path(dims, capability, true).mma);
    dims.state = 56;
    EXPECT_TRUE(mamba3_scan_path(dims, capability, true).mma);
    dims.mimo = false;
    dims.rank = 1;
    EXPECT_FALSE(mamba3_scan_path(dims, capability, true).mma);
  }
}

TEST(KernelPath, ScansInFp32AndOfMimoOfRankOneAreGeneral) {
  Mamba3Dims dims = tuned_dims();
  EXPECT_NE(mamba3_scan_path(dims, 90, false).because.find("fp32"), std::string::npos);
  EXPECT_FALSE(mamba3_scan_path(dims, 90, false).tuned);
  dims.rank = 1;
  EXPECT_FALSE(mamba3_scan_path(dims, 90, true).tuned);
  EXPECT_TRUE(mamba3_step_path(dims, 90).tuned);
}

}  // namespace
}  // namespace mamba3
